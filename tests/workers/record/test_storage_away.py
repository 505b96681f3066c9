"""A storage that is full, read-only or gone for a moment: said once, nothing is lost, and the trial goes on."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from relay import Relay

from cryobench.conf.errors import InterruptedTrialError, LeaseLostError, StorageError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record import files, object_store, storage_guard
from cryobench.workers.record.events import EpochFinished, Event, Note
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]

#: Runs the trial given on a small file system of its own; how it is disturbed, by epoch.
IN_A_NAMESPACE = """
import json, subprocess, sys, threading
from pathlib import Path
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record.events import EpochFinished, Note
from cryobench.workers.trial import run_trial

storage, data, cache, spec = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
storage.mkdir()

def sh(text):
    subprocess.run(text, shell=True, check=True, stderr=subprocess.DEVNULL)

sh(f"mount -t tmpfs -o size=24m tmpfs {storage}")

repair = ""

def report(event):
    global repair
    if isinstance(event, Note):
        print("note", event.message, flush=True)
        threading.Timer(0.7, sh, [repair]).start()
    if isinstance(event, EpochFinished) and event.epoch == 1:
        sh(f"mount -o remount,ro {storage}")
        repair = f"mount -o remount,rw {storage}"
    if isinstance(event, EpochFinished) and event.epoch == 2:
        sh(f"dd if=/dev/zero of={storage}/filler bs=64k count=4096 || true")
        repair = f"rm {storage}/filler"

place = Place(storage, data, cache, device="cpu", resources=ResourceSpec(storage_patience_s=60, lease_s=3))
result = run_trial(TrialSpec.model_validate(spec), place, report=report)
print("result", result.reproducible(), flush=True)
"""


@pytest.mark.slow
def test_read_only_and_full_for_a_moment(place: Place, one_trial: Build, tmp_path: Path) -> None:
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a file system of one's own needs root and mount namespaces (unshare -m)")
    spec = one_trial("protocol.epochs=4")
    undisturbed = run_trial(spec, place)
    arguments = [str(tmp_path / "small"), str(place.data_dir), str(place.cache_dir), spec.model_dump_json()]
    command = ["unshare", "-m", sys.executable, "-c", IN_A_NAMESPACE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("note")]
    assert len(notes) == 2, notes
    assert "Read-only file system" in notes[0]
    assert "No space left" in notes[1]
    assert all("Until then this trial waits" in note for note in notes)
    assert f"result {undisturbed.reproducible()}" in done.stdout


def test_a_storage_that_is_moved_away_and_back(place: Place, one_trial: Build, tmp_path: Path) -> None:
    spec = one_trial()
    undisturbed = run_trial(spec, replace(place, storage=tmp_path / "undisturbed"))
    notes: list[str] = []
    aside = tmp_path / "aside"

    def report(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)
            threading.Timer(0.7, lambda: aside.rename(place.storage)).start()
        if isinstance(event, EpochFinished) and event.epoch == 1:
            place.storage.rename(aside)

    result = run_trial(spec, place, report=report)
    assert result.reproducible() == undisturbed.reproducible()
    assert len(notes) == 1
    assert f"{place.storage}" in notes[0]
    assert "No such file or directory" in notes[0]


def test_a_storage_that_stays_away_leaves_a_trial_that_goes_on_later(
    place: Place, one_trial: Build, tmp_path: Path
) -> None:
    spec, aside = one_trial(), tmp_path / "aside"
    impatient = replace(place, resources=ResourceSpec(storage_patience_s=0.5))

    def report(event: Event) -> None:
        if isinstance(event, EpochFinished) and event.epoch == 1:
            place.storage.rename(aside)

    with pytest.raises(StorageError, match="cannot be used .*bring it back to its place") as raised:
        run_trial(spec, impatient, report=report)
    assert raised.value.kind == "storage"
    assert not place.storage.exists()  # nothing was made in its place
    aside.rename(place.storage)
    state = TrialFolder(place.storage, spec.trial_id).state()
    assert (state.status, state.epoch) == ("begun", 1)
    assert not state.waits_for_user
    assert run_trial(spec, place).status == "completed"


def test_a_folder_that_a_user_removed_is_not_waited_for(place: Place, one_trial: Build) -> None:
    spec = one_trial()

    def report(event: Event) -> None:
        if isinstance(event, EpochFinished):  # at one stroke: the trial's threads go on writing
            (place.storage / "trials" / spec.trial_id).rename(place.storage.with_name("removed"))

    began = time.monotonic()
    with pytest.raises(StorageError):
        run_trial(spec, place, report=report)
    assert time.monotonic() - began < 60


def test_training_goes_on_while_a_store_is_away(
    relay: Relay,
    relayed: str,
    remote: str,
    place: Place,
    one_trial: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(object_store._RETRIES, "max_retries", 0)
    spec = one_trial()
    undisturbed = run_trial(spec, place)
    notes: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)
        if isinstance(event, EpochFinished) and event.epoch == 1:
            relay.away = True
        if isinstance(event, EpochFinished) and event.epoch == 3:
            threading.Timer(1.0, lambda: setattr(relay, "away", False)).start()

    at_node = replace(place, storage=tmp_path / "node", mirror=relayed, resources=ResourceSpec(storage_patience_s=60))
    result = run_trial(spec, at_node, report=report)
    assert result.reproducible() == undisturbed.reproducible()
    assert sum("Training goes on" in note for note in notes) == 1
    assert "result.json" in {name.rpartition("/")[2] for name in Mirror(remote).store.files()}


def test_a_machine_that_is_taken_away_does_not_wait_long(
    place: Place, one_trial: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, aside, leaving = one_trial(), tmp_path / "aside", False

    def report(event: Event) -> None:
        nonlocal leaving
        if isinstance(event, EpochFinished) and event.epoch == 1:
            place.storage.rename(aside)
            leaving = True

    monkeypatch.setattr(storage_guard, "_PATIENCE_LEAVING_S", 0.5)
    with pytest.raises((StorageError, InterruptedTrialError)):
        run_trial(spec, place, report=report, should_stop=lambda: leaving)


def test_nothing_is_written_into_a_fenced_folder_without_asking(tmp_path: Path) -> None:
    class Shut:
        def require(self) -> None:
            raise LeaseLostError("another's")

        def waits_for_storage(self, error: Exception) -> bool:
            return False

        def storage_is_back(self) -> None: ...

    with files.fenced(tmp_path, Shut()):
        for write in (files.append_line, files.write_json):
            with pytest.raises(LeaseLostError):
                write(tmp_path / "x", {})
        files.write_json(tmp_path.parent / "beside.json", {})
    assert not (tmp_path / "x").exists()
    files.write_json(tmp_path / "x", {})
