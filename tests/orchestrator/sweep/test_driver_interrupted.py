"""The driver killed, interrupted or asked to leave in the middle of a sweep: it goes on to the same end."""

import os
import signal
import time
from pathlib import Path

import pytest
from sweeping import SMALL, Command, check_same_and_once, events, kill_driver


@pytest.mark.slow
def test_killing_the_driver_and_running_again_ends_the_same(undisturbed: Command, tmp_path: Path) -> None:
    kill_driver(Command(tmp_path / "storage", undisturbed.data_dir, SMALL), undisturbed.storage, at_epochs=10)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_and_says_how_to_go_on(undisturbed: Command, tmp_path: Path, how: signal.Signals) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    process = command.start()
    command.wait_for(lambda: command.epochs() >= 3, process)
    began = time.monotonic()
    os.kill(process.pid, how)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert time.monotonic() - began < 30
    if how == signal.SIGTERM:  # what ran was saved first, in the middle of its epoch
        assert sum(events(command.storage, "interrupted").values()) >= 1
    places = f"--storage {command.storage} --data-dir {command.data_dir} --cache-dir {command.storage.parent}/cache"
    assert f"Go on with: cryobench resume demo {places}" in told
    assert "Traceback" not in told
    command.run_here("demo", name="resume")
    check_same_and_once(command, undisturbed.storage)
