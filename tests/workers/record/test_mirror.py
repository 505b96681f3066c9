"""A storage on an object store: a real S3 protocol, served on this machine."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cryobench.conf.errors import ConfigError, InterruptedTrialError, StoppedEarlyError, StorageError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import places
from cryobench.orchestrator.results.leaderboard import read_leaderboard
from cryobench.workers.place import Place
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]


def stored(url: str) -> set[str]:
    return {Path(name).name for name in Mirror(url).store.files()}


def test_a_trial_begun_on_one_node_continues_on_another(
    remote: str, place: Place, one_trial: Build, tmp_path: Path
) -> None:
    spec = one_trial()
    whole = run_trial(spec, replace(place, storage=tmp_path / "whole"))
    first = replace(place, storage=tmp_path / "one", mirror=remote)
    with pytest.raises(InterruptedTrialError):
        run_trial(spec, first, should_stop=lambda: True)
    assert "result.json" not in stored(remote)
    second = replace(place, storage=tmp_path / "two", mirror=remote)
    told: list[str] = []
    result = run_trial(spec, second, report=lambda event: told.append(event.event))
    assert result.reproducible() == whole.reproducible()
    assert told.count("resumed") == 1
    found = stored(remote)
    assert {"spec.json", "events.jsonl", "result.json", "state.json", "samples.png", "test_confusion.npy"} <= found
    assert not any(name.startswith("latest-") for name in found)
    assert run_trial(spec, first, report=lambda event: pytest.fail("ran again")) == result


def test_a_trial_that_is_given_up_brings_its_state_and_the_word_to_the_store(
    remote: str, place: Place, one_trial: Build, tmp_path: Path
) -> None:
    spec = one_trial()
    whole = run_trial(spec, replace(place, storage=tmp_path / "whole"))
    here = replace(place, storage=tmp_path / "one", mirror=remote)
    with pytest.raises(StoppedEarlyError):
        run_trial(spec, here, should_stop=lambda: True, given_up=lambda: "behind others")
    where = places(remote, str(place.data_dir), str(tmp_path / "cache"))
    where.bring_trials([spec.trial_id])
    assert TrialFolder(where.storage, spec.trial_id).state().status == "pruned"
    told: list[str] = []
    elsewhere = replace(place, storage=tmp_path / "two", mirror=remote)
    result = run_trial(spec, elsewhere, report=lambda event: told.append(event.event))
    assert "resumed" in told
    assert result.reproducible() == whole.reproducible()


def test_a_lost_upload_of_the_result_is_made_up_for(
    remote: str, place: Place, one_trial: Build, tmp_path: Path
) -> None:
    """What another node sees is what was uploaded: the last whole epoch."""
    spec = one_trial()
    here = replace(place, storage=tmp_path / "one", mirror=remote)
    result = run_trial(spec, here)
    Mirror(remote).store.delete([f"trials/{spec.trial_id}/result.json"])
    again = run_trial(spec, replace(here, storage=tmp_path / "two"))
    assert again.reproducible() == result.reproducible()


def test_working_copies_of_the_driver_hold_the_small_files(
    remote: str, place: Place, one_trial: Build, tmp_path: Path
) -> None:
    spec = one_trial()
    run_trial(spec, replace(place, storage=tmp_path / "worker", mirror=remote))
    where = places(remote, str(place.data_dir), str(tmp_path / "cache"))
    where.bring_trials([spec.trial_id])
    folder = TrialFolder(where.storage, spec.trial_id)
    assert folder.state().status == "completed"
    assert folder.spec() == spec
    assert not list(folder.path.glob("*.safetensors"))
    assert where.worker_storage != where.storage


def test_a_store_that_is_not_there_is_explained(remote: str, tmp_path: Path) -> None:
    url = "s3://nobody/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:9"
    with pytest.raises(StorageError, match=r"Storage s3://nobody/x.* cannot be used .*Check the address"):
        Mirror(url).pull(tmp_path)
    with pytest.raises(ConfigError, match="Expected a local folder or a URL such as"):
        Mirror("ftp://host/x")
    with pytest.raises(ConfigError, match=r"unknown \['colour'\].*no options but"):
        Mirror("s3://bucket/x?colour=red")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Mirror(remote.replace("s3://bench", "s3://nobody")).pull(tmp_path)


@pytest.mark.slow
def test_a_whole_sweep_on_an_object_store(s3: str, remote: str, data_dir: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    def cryobench(*arguments: str) -> str:
        entry = "from cryobench.orchestrator.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", entry, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = ("--storage", remote, "--data-dir", str(data_dir), "--cache-dir", str(tmp_path / "cache"))
    overrides = ("sweep=demo", "encoders=[unet_small]", "datasets=[glid]", "regimes=[frozen]", "protocol.epochs=2")
    assert "1 completed" in cryobench("sweep", *overrides, *where)
    assert {"leaderboard.parquet", "demo.json", "result.json"} <= stored(remote)
    shutil.rmtree(tmp_path / "cache")  # another machine
    assert "1 complete, 0 to run" in cryobench("sweep", *overrides, *where)
    elsewhere = places(remote, str(data_dir), str(tmp_path / "cache"))
    elsewhere.bring_table()
    rows = read_leaderboard(elsewhere.storage)
    assert rows["status"].to_pylist() == ["completed"]
