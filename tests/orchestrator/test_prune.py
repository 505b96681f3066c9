"""What prune removes, what it never does, and what those are told who look for pruned weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cryobench.conf.compose import load_sweep
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.place import Place
from cryobench.workers.record.events import Pruned, StoppedEarly
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
#: By learning rate and seed: best validation, and what becomes of the weights with --keep 1. The lower rate has the
#: better mean, so the table names both of its seeds; the best of all is of the other rate.
CELL = {
    (1e-3, 1): (50.0, "stays"),
    (1e-3, 2): (60.0, "stays"),
    (1e-2, 1): (70.0, "stays"),
    (1e-2, 2): (10.0, "goes"),
}


@dataclass
class Pruning:
    """A storage with one cell of four finished trials, one that was begun and one that was stopped early."""

    storage: Path
    place: Place
    trials: dict[tuple[float, int], str]
    begun: str
    stopped: str

    def run(self, *more: str, expect: int = 0) -> str:
        done = CliRunner().invoke(app, ["prune", "mine", "--storage", str(self.storage), *more])
        assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
        return done.output

    def weights(self) -> dict[tuple[float, int], bool]:
        return {key: self.has(trial, "best-0001.safetensors") for key, trial in self.trials.items()}

    def has(self, trial: str, name: str) -> bool:
        return (TrialFolder(self.storage, trial).path / name).exists()


@pytest.fixture
def cell(place: Place, one_trial: Build) -> Pruning:
    spec = one_trial("protocol.epochs=1")
    result = run_trial(spec, place)
    source, trials = TrialFolder(place.storage, spec.trial_id).path, {}
    aside = place.storage / "aside"
    source.rename(aside)
    for (lr, seed), (miou, _) in CELL.items():
        other = spec.model_copy(update={"lr": lr, "seed": seed})
        folder = TrialFolder(place.storage, other.trial_id)
        shutil.copytree(aside, folder.path)
        (folder.path / "spec.json").unlink()
        folder.write_spec(other)
        folder.write_result(result.model_copy(update={"trial_id": other.trial_id, "best_val_miou": miou}))
        trials[lr, seed] = other.trial_id
    begun = TrialFolder(place.storage, spec.model_copy(update={"seed": 9}).trial_id)
    shutil.copytree(aside, begun.path)
    (begun.path / "result.json").unlink()
    (begun.path / "latest-0001-000000.safetensors").write_bytes(b"needed")
    shutil.rmtree(aside)
    stopped = TrialFolder(place.storage, spec.model_copy(update={"seed": 10}).trial_id)
    shutil.copytree(begun.path, stopped.path)
    for folder in (begun, stopped):
        (folder.path / "spec.json").unlink()
    begun.write_spec(spec.model_copy(update={"seed": 9}))
    stopped.write_spec(spec.model_copy(update={"seed": 10}))
    stopped.record(StoppedEarly(epoch=1, message="asha: behind"))
    listed = [*trials.values(), begun.trial_id, stopped.trial_id]
    record_sweep(place.storage, load_sweep(["sweep=demo", "name=mine"]), listed)
    return Pruning(place.storage, place, trials, begun.trial_id, stopped.trial_id)


def test_it_lists_first_and_keeps_what_the_table_names_and_the_best(cell: Pruning) -> None:
    leftover = TrialFolder(cell.storage, cell.trials[1e-3, 1]).path / "latest-0001-000000.safetensors"
    leftover.write_bytes(b"x" * 3_000_000)
    hidden = leftover.with_name(".best-0001.safetensors.7.tmp")
    hidden.write_bytes(b"x")
    told = cell.run()
    assert "latest-0001-000000.safetensors: 3.0 MB" in told
    assert "3 files of 2 of 6 trials" in told
    assert "nothing was removed; --yes removes them" in told
    assert all(cell.weights().values())
    assert leftover.exists()
    found = json.loads(cell.run("--json"))
    gone = cell.trials[1e-2, 2]
    size = (TrialFolder(cell.storage, gone).path / "best-0001.safetensors").stat().st_size
    assert {"trial_id": gone, "files": {"best-0001.safetensors": size}, "weights": "best-0001.safetensors"} in found[
        "trials"
    ]
    assert found["bytes"] == size + 3_000_001
    assert found["removed"] is False
    assert ": removed." in cell.run("--yes")
    assert cell.weights() == {key: fate == "stays" for key, (_, fate) in CELL.items()}
    assert not leftover.exists()
    assert not hidden.exists()
    for unfinished in (cell.begun, cell.stopped):  # they can go on
        assert cell.has(unfinished, "latest-0001-000000.safetensors")
        assert cell.has(unfinished, "best-0001.safetensors")
    for trial in cell.trials.values():
        assert cell.has(trial, "test_confusion.npy")
        assert TrialFolder(cell.storage, trial).state().status == "completed"
    (event,) = (e for e in TrialFolder(cell.storage, gone).events() if isinstance(e, Pruned))
    assert (event.file, event.bytes) == ("best-0001.safetensors", size)
    assert "nothing to remove" in cell.run("--yes")


def test_the_best_of_a_cell_stay_as_many_as_asked_for(cell: Pruning) -> None:
    cell.run("--keep", "4", "--yes")
    assert all(cell.weights().values())


def test_who_looks_for_pruned_weights_is_told_how_to_get_them(cell: Pruning) -> None:
    cell.run("--yes")
    gone, kept = cell.trials[1e-2, 2], cell.trials[1e-3, 1]
    storage = ["--storage", str(cell.storage)]
    others = ["--data-dir", str(cell.place.data_dir), "--cache-dir", str(cell.place.cache_dir), "--device", "cpu"]
    done = CliRunner().invoke(app, ["trial", "eval", gone, *storage, *others])
    assert f"The best weights of trial {gone} were pruned on " in str(done.exception)
    again = f"cryobench trial run {cell.storage}/trials/{gone}/spec.json --storage ELSEWHERE"
    assert again in str(done.exception)
    told = CliRunner().invoke(app, ["compare", gone, kept, *storage]).output
    assert "not compared; one of the two has no best checkpoint" in told
    assert again in told


def test_an_object_store_is_pruned_too(cell: Pruning, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, query = s3.partition("?")
    url = f"{base}/{tmp_path.name}?{query}"
    mirror = Mirror(url)
    for trial in [*cell.trials.values(), cell.begun]:
        mirror.push_trial(cell.storage, trial)
    mirror.push_projections(cell.storage)
    monkeypatch.setenv("CRYOBENCH_CACHE", str(tmp_path / "elsewhere"))
    cell.storage = url  # type: ignore[assignment]

    def stored() -> set[str]:
        return {name for name in mirror.store.files("trials") if name.endswith(".safetensors")}

    before, gone = stored(), f"trials/{cell.trials[1e-2, 2]}"
    assert "1 files of 1 of 6 trials" in cell.run()
    assert stored() == before
    cell.run("--yes")
    assert before - stored() == {f"{gone}/best-0001.safetensors"}
    assert '"event": "pruned"' in mirror.store.read(f"{gone}/events.jsonl")[0].decode()
    assert "nothing to remove" in cell.run()
