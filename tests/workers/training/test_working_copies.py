"""Working copies of an object store's trials take part in the node cache's limit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.node_cache import decoded_bytes
from cryobench.datasets.store.tile_store import TileStore
from cryobench.workers.place import Place
from cryobench.workers.training.working_copies import working_copies
from cryobench.workers.trial import run_trial


def test_a_finished_trial_goes_once_its_result_is_in_the_store(
    s3: str, place: Place, one_trial: Callable[..., TrialSpec], glid_store: TileStore, tmp_path: Path
) -> None:
    base, _, query = s3.partition("?")
    copies = place.cache_dir / "storages" / "x" / "worker"
    place = replace(place, storage=copies, mirror=f"{base}/{tmp_path.name}?{query}")
    spec, other = one_trial("protocol.epochs=1"), one_trial("protocol.epochs=1", "seed=5")
    result = run_trial(spec, place)
    (copy,) = working_copies(place.cache_dir)
    assert copy.folder.name == spec.trial_id
    assert copy.bytes == sum(path.stat().st_size for path in copy.folder.iterdir())
    assert copy.may_go()
    path = copy.folder / "result.json"
    content = path.read_bytes()
    path.write_bytes(content + b"\n")  # not what was brought
    assert not copy.may_go()
    path.write_bytes(content)
    run_trial(spec, place)  # brings it again
    small = ResourceSpec(cache_limit_gb=(decoded_bytes(glid_store) + 1000) / 1e9)
    assert run_trial(other, replace(place, resources=small)).status == "completed"
    assert [copy.folder.name for copy in working_copies(place.cache_dir)] == [other.trial_id]
    assert run_trial(spec, place, report=lambda event: None) == result  # from the store
