"""Storages of earlier releases: planned, resumed, synced and tabulated; nothing is renamed, lost or run again."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import RecordError
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.leaderboard import read_leaderboard, table_path
from cryobench.orchestrator.results.reconcile import sync
from cryobench.orchestrator.results.tracking import default_uri
from cryobench.orchestrator.sweep.former_names import rename_former_trials
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.orchestrator.sweep_record import all_sweeps, read_sweep, record_sweep
from cryobench.workers.record.folder import TrialFolder, all_trials
from cryobench.workers.trial import run_trial

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("format_*.tar.gz"))
ENTRY = "from cryobench.orchestrator.cli import main; main()"


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """The places of an old storage, at another path than it was written at."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return Places(tmp_path / "storage", tmp_path / "data", tmp_path / "cache", tmp_path / "weights", tmp_path / "conf")


@pytest.fixture
def first_format(tmp_path: Path) -> Places:
    with tarfile.open(FIXTURES[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    return Places(tmp_path / "storage", tmp_path / "data", tmp_path / "cache", tmp_path / "weights", tmp_path / "conf")


def expected(old: Places) -> Any:
    return json.loads((old.storage.parent / "expected.json").read_text())


def command(old: Places, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--storage", str(old.storage), "--data-dir", str(old.data_dir), "--cache-dir", str(old.cache_dir)]
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments, *places], capture_output=True, text=True, timeout=300, check=False
    )


def test_there_is_a_storage_of_every_format() -> None:
    assert [path.name for path in FIXTURES] == [f"format_{n}.tar.gz" for n in range(1, len(FIXTURES) + 1)]


def test_a_plan_finds_every_trial_under_its_name(old: Places) -> None:
    for sweep, ids in expected(old)["sweeps"].items():
        record = read_sweep(old.storage, sweep)
        assert list(record.trials) == ids
        plans = [make_plan(request, old) for request in record.requests]
        found = {t.spec.trial_id: t.state for plan in plans for t in plan.trials}
        assert found == {trial: expected(old)["states"][trial] for trial in ids}


def test_sync_and_leaderboard_hold_every_trial_that_ended(old: Places) -> None:
    ended = {t for t, state in expected(old)["states"].items() if state in ("completed", "diverged", "failed")}
    before = {row["trial_id"]: row["test_miou"] for row in read_leaderboard(old.storage).to_pylist()}
    told: list[str] = []
    done = sync(old.storage, default_uri(old.storage), tell=told.append)
    assert (done.tracking_error, done.problems, done.removed_runs) == (None, {}, 0)
    assert any("was moved or copied" in text for text in told)
    after = {row["trial_id"]: row["test_miou"] for row in read_leaderboard(old.storage).to_pylist()}
    assert after == before
    assert set(after) == ended
    shutil.rmtree(old.storage / "leaderboard")
    sync(old.storage, None)
    assert {r["trial_id"]: r["test_miou"] for r in read_leaderboard(old.storage).to_pylist()} == before


def test_an_interrupted_trial_goes_on_from_its_checkpoint(old: Places) -> None:
    (begun,) = (trial for trial, state in expected(old)["states"].items() if state == "begun")
    folder = TrialFolder(old.storage, begun)
    result = run_trial(folder.spec(), old.for_trials(read_sweep(old.storage, "first").requests[0].resources, "cpu"))
    assert result.trial_id == begun
    assert result.status == "completed"
    assert [event.epoch for event in folder.epochs()] == [1, 2]
    assert any(event.event == "resumed" for event in folder.events())


def test_resume_runs_what_is_left_and_nothing_else(old: Places) -> None:
    states = expected(old)["states"]
    ended = [t for t in expected(old)["sweeps"]["first"] if states[t] in ("completed", "diverged", "failed")]
    before = {t: (old.storage / "trials" / t / "events.jsonl").read_bytes() for t in ended}
    done = command(old, "resume", "first")
    assert "6 trials, 3 complete, 2 to run" in done.stdout, done.stdout + done.stderr
    assert "2 completed" in done.stdout
    assert done.returncode == 1  # the failed trial waits for --retry-failed
    assert {t: (old.storage / "trials" / t / "events.jsonl").read_bytes() for t in ended} == before
    assert read_leaderboard(old.storage).num_rows == 8


def test_the_tables_print(old: Places) -> None:
    done = command_without_data(old, "leaderboard")
    assert done.returncode == 0, done.stderr
    assert "Micro U-Net" in done.stdout


def command_without_data(old: Places, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments, "--storage", str(old.storage)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_latest_resources_are_those_of_every_request(first_format: Places) -> None:
    """Format 1 told requests apart by their resources, and resumed the unlimited one first."""
    record = read_sweep(first_format.storage, "first")
    assert [request.resources.max_concurrent for request in record.requests] == [1]


def test_lowering_max_concurrent_is_no_other_request(first_format: Places) -> None:
    overrides = ["encoder=micro", "dataset=glid", "regime=frozen", "lr_search=null", "name=third"]
    for limit in ("null", "2", "1"):
        sweep = load_sweep([*overrides, f"resources.max_concurrent={limit}"], first_format.config_dir)
        record = record_sweep(first_format.storage, sweep, make_plan(sweep, first_format).trial_ids)
    assert [request.resources.max_concurrent for request in record.requests] == [1]
    assert read_sweep(first_format.storage, "third") == record


def completed(old: Places) -> TrialFolder:
    trial = next(t for t, state in expected(old)["states"].items() if state == "completed")
    return TrialFolder(old.storage, trial)


@pytest.mark.parametrize("field", ["provenance", "cost", "test", "classes", "steps", "final_weights"])
def test_a_result_without_one_field_is_one_trials_problem(first_format: Places, field: str) -> None:
    folder = completed(first_format)
    path = folder.path / "result.json"
    plain = json.loads(path.read_text())
    del plain[field]
    path.write_text(json.dumps(plain))
    record = read_sweep(first_format.storage, "first")
    (found,) = (t for t in make_plan(record.requests[0], first_format).trials if t.spec.trial_id == folder.trial_id)
    assert found.state == "completed"  # nothing finished is run again
    done = sync(first_format.storage, None)
    assert list(done.problems) == [folder.trial_id]
    rows = {row["trial_id"]: row for row in read_leaderboard(first_format.storage).to_pylist()}
    assert len(rows) == 6
    assert "is not a whole result" in rows[folder.trial_id]["message"]
    assert sum(row["test_miou"] is not None for row in rows.values()) >= 3


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff\x00", b"[]", b'{"status": 3}', b'{"format": 99}'])
@pytest.mark.parametrize("name", ["result.json", "spec.json"])
def test_a_damaged_or_newer_file_stops_nothing_but_its_trial(first_format: Places, name: str, content: bytes) -> None:
    folder = completed(first_format)
    (folder.path / name).write_bytes(content)
    record = read_sweep(first_format.storage, "first")
    states = {t.spec.trial_id: t for t in make_plan(record.requests[0], first_format).trials}
    if name == "result.json":
        assert (states[folder.trial_id].state, states[folder.trial_id].kind) == ("failed", "bad_record")
        assert states[folder.trial_id].waits_for_user
    assert sum(t.state == "completed" for t in states.values()) >= 2
    told: list[str] = []
    done = sync(first_format.storage, default_uri(first_format.storage), tell=told.append)
    assert list(done.problems) == [folder.trial_id]
    assert done.tracking_error is None
    assert str(folder.path / name) in done.problems[folder.trial_id]
    if b"99" in content:
        assert "later cryobench" in done.problems[folder.trial_id]


def test_a_sweep_record_of_a_later_release_stops_only_itself(first_format: Places) -> None:
    path = first_format.storage / "sweeps" / "first.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(RecordError, match=r"first.json has format 99, this release reads up to \d.*later cryobench"):
        read_sweep(first_format.storage, "first")
    told: list[Any] = []
    assert [record.name for record in all_sweeps(first_format.storage, told.append)] == ["second"]
    assert len(told) == 1
    done = sync(first_format.storage, None)
    assert done.rows == 6
    assert list(done.problems) == ["sweeps"]


def test_published_statistics_are_in_the_name_by_their_values(first_format: Places) -> None:
    """Release 0.1 gave one name to trials whose inputs were normalised by means of 120 and of 10."""
    overrides = ["encoder=micro", "dataset=glid", "regime=frozen", "lr_search=null", "statistics=published"]
    (before,) = make_plan(load_sweep(overrides, first_format.config_dir), first_format).trials
    zarr = Path(first_format.data_dir) / "glid.zarr" / "zarr.json"
    plain = json.loads(zarr.read_text())
    plain["attributes"]["cryobench"]["groups"]["optical"]["published"]["mean"][0] = 10.0
    zarr.write_text(json.dumps(plain))
    (after,) = make_plan(load_sweep(overrides, first_format.config_dir), first_format).trials
    assert before.spec.trial_id != after.spec.trial_id
    assert before.spec.former_ids == after.spec.former_ids


def test_a_trial_with_published_statistics_is_found_under_its_former_name_and_renamed(first_format: Places) -> None:
    overrides = ["encoder=micro", "dataset=glid", "regime=frozen", "lr_search=null", "statistics=published"]
    sweep = load_sweep([*overrides, "name=published"], first_format.config_dir)
    (trial,) = make_plan(sweep, first_format).trials
    (former,) = trial.spec.former_ids
    storage = first_format.storage
    shutil.copytree(completed(first_format).path, storage / "trials" / former)
    record_sweep(storage, sweep, [former])
    (found,) = make_plan(sweep, first_format).trials
    assert found.state == "completed"
    assert rename_former_trials(storage, [trial.spec]) == {former: trial.spec.trial_id}
    assert rename_former_trials(storage, [trial.spec]) == {}
    assert TrialFolder.find(storage, former).trial_id == trial.spec.trial_id
    assert TrialFolder(storage, former).spec().trial_id == trial.spec.trial_id
    assert read_sweep(storage, "published").trials == (trial.spec.trial_id,)
    assert former not in {folder.trial_id for folder in all_trials(storage)}
    sync(storage, None)
    assert trial.spec.trial_id in read_leaderboard(storage)["trial_id"].to_pylist()
    assert table_path(storage).exists()


def test_killed_between_its_two_renames_a_renaming_is_finished_by_the_next(
    first_format: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["encoder=micro", "dataset=glid", "regime=frozen", "lr_search=null", "statistics=published"]
    (trial,) = make_plan(load_sweep(overrides, first_format.config_dir), first_format).trials
    (former,) = trial.spec.former_ids
    storage = first_format.storage
    shutil.copytree(completed(first_format).path, storage / "trials" / former)
    real = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".moved"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        rename_former_trials(storage, [trial.spec])
    monkeypatch.undo()
    assert TrialFolder(storage, trial.spec.trial_id).state().status == "completed"
    rename_former_trials(storage, [trial.spec])
    assert TrialFolder.find(storage, former).trial_id == trial.spec.trial_id
