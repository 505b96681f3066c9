"""Two drivers on one sweep: the second shows how the first gets on, and goes on in its place when it is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweeping import SMALL, Command, check_same_and_once, events

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import HeldElsewhereError, StorageError
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep import attaching
from cryobench.orchestrator.sweep.attaching import take_sweep
from cryobench.orchestrator.sweep.plan import Plan, make_plan
from cryobench.workers.place import Place
from cryobench.workers.record.lease import Lease
from cryobench.workers.record.lease_files import FolderLeaseFile
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.trial import run_trial

FIRST = """
import sys
from pathlib import Path
from cryobench.workers.record.lease import take_lease
from cryobench.workers.record.lease_files import FolderLeaseFile
take_lease(FolderLeaseFile(Path(sys.argv[1])), "Sweep demo", length_s=60)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def plan(where: Places) -> Plan:
    """Two trials of a second or two."""
    one = ("encoders=[unet_small]", "regimes=[frozen]", "lr=1e-3", "seeds=[1,2]", "protocol.epochs=2")
    return make_plan(load_sweep([*SMALL, *one]), where)


@pytest.fixture
def first(where: Places) -> subprocess.Popen[str]:
    """Another process that drives the sweep."""
    path = where.storage / "sweeps" / "drivers" / "demo.json"
    path.parent.mkdir(parents=True)
    command = [sys.executable, "-c", FIRST, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_refuses_where_it_is_not_to_wait(
    where: Places, plan: Plan, first: subprocess.Popen[str]
) -> None:
    with pytest.raises(HeldElsewhereError, match=rf"Sweep demo is being run .*process {first.pid}, since"):
        take_sweep(plan, where, None, print, wait=False)
    first.kill()
    first.wait()
    held, same = take_sweep(plan, where, None, print, wait=False)  # whose holder is dead is no holder
    assert same is plan
    held.give_back()


def test_a_second_driver_shows_waits_and_goes_on(
    where: Places, place: Place, plan: Plan, first: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "_LOOK_EVERY_S", 0.1)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.endswith("0 of 2 trials complete, 0 running"):
            run_trial(plan.trials[0].spec, place)
        if "1 of 2 trials complete" in text:
            first.kill()

    held, now = take_sweep(plan, where, None, say)
    held.give_back()
    first.wait()
    assert f"process {first.pid}, since" in said[0]
    assert "--no-wait refuses" in said[0]
    assert said[1:] == [
        "Sweep demo: 0 of 2 trials complete, 0 running",
        "Sweep demo: 1 of 2 trials complete, 0 running",
        "Sweep demo: the other driver is gone; going on here.",
    ]
    assert [trial.state for trial in plan.trials] == ["pending", "pending"]
    assert [trial.state for trial in now.trials] == ["completed", "pending"]  # not run again


def test_drivers_of_a_sweep_on_an_object_store(
    s3: str, where: Places, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "_LOOK_EVERY_S", 0.1)
    base, _, query = s3.partition("?")
    url = f"{base}/{tmp_path.name}?{query}"
    mirror, remote = Mirror(url), replace(where, storage_url=url)
    lease = replace(Lease.of_this_process(1.0), machine="another", host="node-7")
    mirror.driver_lease("demo").write(lease.content(), None)
    said: list[str] = []
    held, _ = take_sweep(plan, remote, mirror, said.append)  # nobody renews it
    held.give_back()
    assert "is driven by node-7, process" in said[0]
    assert "Sweep demo: 0 of 2 trials complete" in said
    assert "sweeps/drivers/demo.json" in mirror.store.files("sweeps")
    mirror.push_projections(where.storage)
    Mirror(url).pull_sweeps(tmp_path / "other")
    assert not (tmp_path / "other" / "sweeps" / "drivers").exists()


def test_a_driver_whose_sweep_was_taken_over_leaves(where: Places, plan: Plan) -> None:
    said: list[str] = []
    left = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: left.set())
    try:
        asked = plan.sweep.resources.model_copy(update={"lease_s": 0.3})
        short = Plan(plan.sweep.model_copy(update={"resources": asked}), plan.trials)
        held, _ = take_sweep(short, where, None, said.append)
        file = FolderLeaseFile(where.storage / "sweeps" / "drivers" / "demo.json")
        taken = None
        while taken is None:
            now = file.read()
            assert now is not None
            taken = file.write(Lease.of_this_process(60).content(), now.tag)
        deadline = time.monotonic() + 20
        while not left.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left.is_set()
        assert "Another driver has taken over sweep demo" in said[0]
        held.give_back()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_storage_that_cannot_be_written_is_one_message_at_the_start(where: Places, plan: Plan) -> None:
    where.storage.write_text("a file, where the folder should be")
    with pytest.raises(StorageError, match=rf"{where.storage} cannot be used .*bring it back to its place"):
        take_sweep(plan, where, None, print)


@pytest.mark.slow
def test_the_second_of_two_commands_ends_the_sweep_that_the_first_was_killed_in(
    tmp_path: Path, data_dir: Path, undisturbed: Command
) -> None:
    command = Command(tmp_path / "storage", data_dir, SMALL)
    first = command.start()
    command.wait_for(lambda: command.epochs() >= 3, first)
    refused = command.run("--no-wait", expect=1)
    assert "Interrupted" not in refused
    second = command.start()
    log: list[str] = []
    assert second.stdout is not None
    while "is driven by" not in "".join(log[-1:]):
        log.append(second.stdout.readline())
        assert log[-1], log
    os.killpg(first.pid, signal.SIGKILL)  # its Ray with it, as when a machine goes away
    first.wait()
    rest, _ = second.communicate(timeout=500)
    assert second.returncode == 0, "".join(log) + rest
    assert "the other driver is gone; going on here" in rest
    check_same_and_once(command, undisturbed.storage)
    assert max(events(command.storage, "attempt").values()) <= 2
