"""Two nodes and one trial: one runs it, the other waits, and goes on when the first is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cryobench.conf.errors import HeldElsewhereError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers import trial
from cryobench.workers.place import Place
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.lease import leased
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
LENGTH_S = 4.0


class Node:
    """A process that runs the trial; what it says is read as it comes."""

    def __init__(self, place: Place, spec: TrialSpec, name: str, folder: Path, mirror: str | None) -> None:
        given = {
            "storage": str(folder / name if mirror else place.storage),
            "data": str(place.data_dir),
            "cache": str(place.cache_dir),
            "spec": spec.model_dump(mode="json"),
            "machine": name,
            "lease_s": LENGTH_S,
            "pause_s": 0.4,
            "mirror": mirror,
        }
        command = [sys.executable, str(Path(__file__).with_name("node.py")), json.dumps(given)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def wait_for(self, start: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(line.startswith(start) for line in self.said):
            assert time.monotonic() < deadline, self.said
            assert self.process.poll() is None or self._thread.is_alive(), self.said
            time.sleep(0.05)


def contents(place: Place, mirror: str | None) -> dict[str, Any]:
    """Every file of the storage's trials and how it stands, leases left out."""
    if mirror:
        return {name: s.tag for name, s in Mirror(mirror).store.files("trials").items() if "lease" not in name}
    files = (path for path in (place.storage / "trials").rglob("*") if path.is_file() and "lease" not in path.name)
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["folder", "store"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_second_node_goes_on_where_the_first_one_was(
    shared: str,
    how: signal.Signals,
    request: pytest.FixtureRequest,
    place: Place,
    one_trial: Build,
    tmp_path: Path,
) -> None:
    spec = one_trial("protocol.epochs=6")
    mirror = request.getfixturevalue("remote") if shared == "store" else None
    undisturbed = run_trial(spec, replace(place, storage=tmp_path / "undisturbed"))
    first = Node(place, spec, "one", tmp_path, mirror)
    first.wait_for("epoch 1")
    second = Node(place, spec, "two", tmp_path, mirror)
    second.wait_for(f"note Trial {spec.trial_id} is being run by ")
    assert f"process {first.process.pid}," in second.said[0]
    first.wait_for("epoch 2")
    os.kill(first.process.pid, how)
    second.wait_for("result completed")
    second.process.wait()
    resumed = int(next(line for line in second.said if line.startswith("resumed")).split()[1])
    assert resumed >= 1  # a checkpoint is written beside the training: the second epoch's may not have been done
    assert [line for line in second.said if line.startswith("epoch")] == [f"epoch {n}" for n in range(resumed + 1, 7)]
    before = contents(place, mirror)
    if how == signal.SIGSTOP:
        os.kill(first.process.pid, signal.SIGCONT)
        first.wait_for("error lease_lost")
    first.process.wait()
    assert contents(place, mirror) == before  # whoever came back wrote nothing, and removed nothing
    result = run_trial(spec, replace(place, storage=tmp_path / "third", mirror=mirror) if mirror else place)
    assert result.reproducible() == undisturbed.reproducible()


def test_a_trial_that_is_held_is_refused_after_a_while(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = one_trial()
    folder = TrialFolder(place.storage, spec.trial_id)
    impatient = replace(place, resources=ResourceSpec(lease_s=0.5))
    monkeypatch.setattr(trial, "_BEYOND_LEASE_S", 0.0)
    with (
        leased(folder.lease_file(), "Trial x", length_s=60),
        pytest.raises(HeldElsewhereError, match=rf"Trial {spec.trial_id} is being run .*process {os.getpid()}"),
    ):
        run_trial(spec, impatient)
    assert folder.state().status == "pending"  # nothing was written of it, it is nobody's failure


def test_a_finished_trial_is_read_without_a_lease(place: Place, one_trial: Build) -> None:
    result = run_trial(one_trial(), place)
    with leased(TrialFolder(place.storage, result.trial_id).lease_file(), "Trial x"):
        assert run_trial(one_trial(), place) == result
