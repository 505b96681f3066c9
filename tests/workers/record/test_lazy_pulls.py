"""Working copies fetch what is asked for and changed, in few requests, and lose nothing that is newer here."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from relay import Relay

from cryobench.conf.errors import LeaseLostError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import places
from cryobench.orchestrator.sweep.crash import record_failure
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror

Build = Callable[..., TrialSpec]
TRIALS = [f"{number:016x}" for number in range(300)]


def fill(url: str, trials: list[str]) -> None:
    store = Mirror(url).store
    files = [f"trials/{trial}/{name}" for trial in trials for name in ("spec.json", "events.jsonl", "result.json")]
    files += [f"trials/{trial}/best-0001.safetensors" for trial in trials]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, name.encode()), files))


@pytest.mark.slow
def test_300_trials_in_a_few_requests(remote: str, relay: Relay, relayed: str, tmp_path: Path) -> None:
    fill(remote, TRIALS)
    Mirror(relayed).pull_trials(tmp_path, TRIALS)
    first = relay.counted()
    assert len([r for r in first if "list-type=2" in r]) <= 2  # 1,200 objects, a thousand a request
    assert len(first) <= 900 + 2
    assert not list(tmp_path.rglob("*.safetensors"))
    Mirror(relayed).pull_trials(tmp_path, TRIALS)  # another process
    assert len(relay.counted()) <= 2
    Mirror(relayed).pull_trials(tmp_path, TRIALS[:3])
    assert len(relay.counted()) <= 3
    Mirror(remote).store.write(f"trials/{TRIALS[7]}/events.jsonl", b"more")
    Mirror(relayed).pull_trials(tmp_path, TRIALS)
    assert len(relay.counted()) <= 3
    assert (tmp_path / "trials" / TRIALS[7] / "events.jsonl").read_bytes() == b"more"


def test_places_alone_read_nothing(remote: str, relay: Relay, relayed: str, tmp_path: Path) -> None:
    fill(remote, TRIALS[:5])
    where = places(relayed, str(tmp_path / "data"), str(tmp_path / "cache"))
    assert relay.counted() == []
    where.bring_trials([TRIALS[0]])
    assert len(relay.counted()) == 4  # a listing and three small files
    assert [path.name for path in (where.storage / "trials").iterdir()] == [TRIALS[0]]


def test_what_was_made_here_is_not_overwritten(remote: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for copy in (here, there):
        (copy / "leaderboard").mkdir(parents=True)
    mirror, other = Mirror(remote), Mirror(remote)
    (there / "leaderboard" / "a").write_text("first")
    other.push_projections(there)
    mirror.pull_projections(here)
    assert (here / "leaderboard" / "a").read_text() == "first"
    (here / "leaderboard" / "a").write_text("ours, newer")
    (here / "leaderboard" / "b").write_text("ours, new")
    (there / "leaderboard" / "a").write_text("theirs, newer too")
    (there / "leaderboard" / "b").write_text("theirs, new too")
    (there / "leaderboard" / "c").write_text("theirs alone")
    other.push_projections(there)
    Mirror(remote).pull_projections(here)  # another process
    found = {name: (here / "leaderboard" / name).read_text() for name in "abc"}
    assert found == {"a": "ours, newer", "b": "ours, new", "c": "theirs alone"}


def test_a_trial_that_only_this_node_wrote_stays_as_it_is_here(remote: str, tmp_path: Path) -> None:
    """An upload was lost: what stands here is newer than what the store holds."""
    here, folder = tmp_path / "here", tmp_path / "here" / "trials" / "t"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("epoch 1")
    (folder / "latest-1.safetensors").write_text("1")
    Mirror(remote).push_trial(here, "t")
    (folder / "state.json").write_text("epoch 2")
    (folder / "latest-2.safetensors").write_text("2")
    (folder / "latest-1.safetensors").unlink()
    Mirror(remote).pull_trial(here, "t", whole=True)
    assert (folder / "state.json").read_text() == "epoch 2"
    Mirror(remote).push_trial(here, "t")
    assert set(Mirror(remote).store.files("trials/t")) == {"trials/t/latest-2.safetensors", "trials/t/state.json"}


def test_a_trial_that_another_node_went_on_with_becomes_what_the_store_holds(remote: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "trials" / "t").mkdir(parents=True)
    (here / "trials" / "t" / "state.json").write_text("epoch 1")
    (here / "trials" / "t" / "latest-1.safetensors").write_text("1")
    Mirror(remote).push_trial(here, "t")
    Mirror(remote).pull_trial(there, "t", whole=True)
    (there / "trials" / "t" / "state.json").write_text("epoch 9")
    (there / "trials" / "t" / "latest-9.safetensors").write_text("9")
    (there / "trials" / "t" / "latest-1.safetensors").unlink()
    Mirror(remote).push_trial(there, "t")
    (here / "trials" / "t" / "state.json").write_text("epoch 2")  # by who had lost the trial
    with pytest.raises(LeaseLostError, match="state.json was written by another process"):
        Mirror(remote).push_trial(here, "t")
    held = {"trials/t/latest-9.safetensors", "trials/t/state.json"}
    assert set(Mirror(remote).store.files("trials/t")) == held  # nothing of it was removed
    Mirror(remote).pull_trial(here, "t", whole=True)
    assert (here / "trials" / "t" / "state.json").read_text() == "epoch 9"
    assert not (here / "trials" / "t" / "latest-1.safetensors").exists()


def test_recording_a_crash_removes_no_checkpoint(remote: str, one_trial: Build, tmp_path: Path) -> None:
    """The driver's working copy holds the small files alone: what it lacks is not what was removed."""
    spec = one_trial()
    worker, driver = tmp_path / "worker", tmp_path / "driver"
    folder = TrialFolder(worker, spec.trial_id)
    folder.write_spec(spec)
    (folder.path / "state.json").write_text("{}")
    (folder.path / "latest-1.safetensors").write_text("1")
    Mirror(remote).push_trial(worker, spec.trial_id)
    assert record_failure(driver, spec, "crashed", "died", Mirror(remote)) == "died"
    names = {name.rpartition("/")[2] for name in Mirror(remote).store.files()}
    assert {"latest-1.safetensors", "state.json", "events.jsonl"} <= names


def test_a_store_that_answers_503_for_a_moment_is_tried_again(
    remote: str, relay: Relay, relayed: str, tmp_path: Path
) -> None:
    import threading

    fill(remote, TRIALS[:1])
    relay.away = True
    threading.Timer(0.8, lambda: setattr(relay, "away", False)).start()
    Mirror(relayed).pull_trials(tmp_path, TRIALS[:1])
    assert (tmp_path / "trials" / TRIALS[0] / "result.json").exists()


def test_an_earlier_release_s_working_copy_becomes_what_the_store_holds(remote: str, tmp_path: Path) -> None:
    fill(remote, TRIALS[:1])
    folder = tmp_path / "trials" / TRIALS[0]
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("old")
    (folder / "latest-7.safetensors").write_text("old")
    Mirror(remote).pull_trial(tmp_path, TRIALS[0], whole=True)
    assert (folder / "result.json").read_text() == f"trials/{TRIALS[0]}/result.json"
    assert not (folder / "latest-7.safetensors").exists()
    (folder / ".stamps.json").write_text('{"format": 99}')  # a later release's: the store counts
    (folder / "result.json").write_text("changed")
    Mirror(remote).pull_trial(tmp_path, TRIALS[0], whole=True)
    assert (folder / "result.json").read_text() == f"trials/{TRIALS[0]}/result.json"
