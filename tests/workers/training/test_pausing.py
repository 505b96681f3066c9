"""Leaving in the middle of an epoch, memory that runs out, reads that hang: each really caused."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cryobench.conf.errors import HungReadError, InterruptedTrialError, OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.tile_source import CachedTiles
from cryobench.encoders.unet import UNetEncoder as UNet
from cryobench.workers.place import Place
from cryobench.workers.record.events import Event, OutOfMemory, Resumed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.result import TrialResult
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
#: Dropout in the decoder and several steps an epoch: random states matter, and there is a middle to stop in.
MORE = ("encoder=s12_moco_small", "regime=finetune", "protocol.batch_size=2", "protocol.epochs=2")


def whole(place: Place, spec: TrialSpec) -> TrialResult:
    return run_trial(spec, replace(place, storage=place.storage.parent / "whole"))


def test_it_may_stop_after_any_step_and_goes_on_to_the_same_end(place: Place, one_trial: Build) -> None:
    spec = one_trial(*MORE)
    expected = whole(place, spec)
    stops = 0
    while True:
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked >= 2  # a step further every time

        try:
            result = run_trial(spec, place, should_stop=stop)
            break
        except InterruptedTrialError:
            stops += 1
            assert stops < 40
    assert stops >= 6
    assert result.reproducible() == expected.reproducible()


def test_it_saves_within_an_epoch_by_the_clock(place: Place, one_trial: Build) -> None:
    spec = one_trial(*MORE)
    resources = ResourceSpec(checkpoint_every_s=1e-6)
    steps: list[int] = []
    folder = TrialFolder(place.storage, spec.trial_id)

    class Killed(BaseException):
        pass

    def die() -> bool:
        state = folder.path / "state.json"
        position = json.loads(state.read_text())["training"]["position"] if state.exists() else None
        if position and position[1] < 4:
            steps.append(position[1])
            raise Killed
        return False

    with pytest.raises(Killed):
        run_trial(spec, replace(place, resources=resources), should_stop=die)
    state = json.loads((folder.path / "state.json").read_text())["training"]  # the writer may have gone on meanwhile
    result = run_trial(spec, place)
    resumed = next(e for e in folder.events() if isinstance(e, Resumed))
    assert [resumed.epoch + 1, resumed.step] == (state["position"] or [state["epoch"] + 1, 0])
    assert result.reproducible() == whole(place, spec).reproducible()


def test_sigterm_saves_and_leaves_within_seconds_and_it_continues_elsewhere(place: Place, one_trial: Build) -> None:
    spec = one_trial("protocol.batch_size=2", "protocol.epochs=5", "protocol.crops_per_tile=8", "protocol.eval_every=5")
    path = place.storage.parent / "spec.json"
    path.write_text(spec.model_dump_json())
    entry = "from cryobench.orchestrator.cli import main; main()"
    command = [sys.executable, "-c", entry, "trial", "run", str(path), "--device", "cpu"]
    command += ["--storage", str(place.storage), "--data-dir", str(place.data_dir), "--cache-dir", str(place.cache_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    folder = TrialFolder(place.storage, spec.trial_id)
    deadline = time.monotonic() + 90
    while not (folder.path / "events.jsonl").exists() or len(folder.epochs()) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - began < 30
    assert "the same command goes on from there" in told
    state = json.loads((folder.path / "state.json").read_text())["training"]
    assert state["epoch"] >= 1
    assert folder.events()[-1].event == "interrupted"
    elsewhere = place.storage.parent / "elsewhere"
    (place.storage).rename(elsewhere)
    result = run_trial(spec, replace(place, storage=elsewhere))
    assert result.reproducible() == whole(place, spec).reproducible()


def test_stopping_in_evaluation_loses_no_step(place: Place, one_trial: Build) -> None:
    spec = one_trial(*MORE)
    folder, seen = TrialFolder(place.storage, spec.trial_id), []

    def in_evaluation() -> bool:
        import inspect

        found = any(frame.function == "evaluate" for frame in inspect.stack())
        seen.append(found)
        return found

    with pytest.raises(InterruptedTrialError, match="while evaluating on val"):
        run_trial(spec, place, should_stop=in_evaluation)
    position = json.loads((folder.path / "state.json").read_text())["training"]["position"]
    assert position == [1, 4]  # all four steps of the first epoch
    assert run_trial(spec, place).reproducible() == whole(place, spec).reproducible()


def greedy(monkeypatch: pytest.MonkeyPatch, crops: int, inside: str = "train") -> None:
    """Batches of more than ``crops`` ask for more memory than any machine has."""
    real = UNet.forward

    def forward(self: UNet, inputs: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
        size = len(next(iter(inputs.values())))
        if size > crops and self.training == (inside == "train"):
            torch.empty(2**58, dtype=torch.uint8)
        return real(self, inputs)

    monkeypatch.setattr(UNet, "forward", forward)


def test_memory_that_does_not_suffice_alone_either_makes_the_whole_trial_in_parts(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy(monkeypatch, crops=2)
    told: list[Event] = []
    result = run_trial(one_trial(), place, report=told.append)
    assert result.status == "completed"
    assert result.micro_batches == 2  # batches of four, in two parts of two
    assert [(e.goes_on, e.micro_batches) for e in told if isinstance(e, OutOfMemory)] == [(True, 1), (False, 2)]
    from cryobench.orchestrator.results.leaderboard import leaderboard_row

    row = leaderboard_row(TrialFolder(place.storage, result.trial_id), "x", None)
    assert row is not None
    assert (row["micro_batches"], row["precision"]) == (2, "fp32")


def test_gathered_gradients_resume_as_such(place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy(monkeypatch, crops=2)
    expected = whole(place, one_trial())
    seen: list[Event] = []
    with pytest.raises(InterruptedTrialError):
        run_trial(one_trial(), place, report=seen.append, should_stop=lambda: getattr(seen[-1], "epoch", 0) == 2)
    monkeypatch.undo()
    assert run_trial(one_trial(), place).reproducible() == expected.reproducible()


def test_memory_that_never_suffices_ends_the_trial(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy(monkeypatch, crops=0)
    with pytest.raises(OutOfMemoryError, match="alone on the device, and also with their gradient gathered from parts"):
        run_trial(one_trial(), place)
    state = TrialFolder(place.storage, one_trial().trial_id).state()
    assert (state.status, state.kind) == ("failed", "out_of_memory")


def test_evaluation_takes_fewer_windows_where_memory_is_short(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = one_trial("encoder=unet_small")
    expected = whole(place, spec)
    greedy(monkeypatch, crops=1, inside="eval")
    result = run_trial(spec, place)
    assert result.micro_batches == 1
    assert result.test is not None
    assert expected.test is not None
    assert result.test.miou == pytest.approx(expected.test.miou, abs=0.1)


def test_a_process_whose_memory_is_limited_ends_as_out_of_memory(place: Place, one_trial: Build) -> None:
    """The kernel itself refuses: the limit is set on a process of its own."""
    spec = one_trial("protocol.batch_size=256", "protocol.crops_per_tile=64")
    path = place.storage.parent / "spec.json"
    path.write_text(spec.model_dump_json())
    script = textwrap.dedent(f"""
        import resource, psutil, torch
        from pathlib import Path
        from cryobench.workers.training import attempt
        from cryobench.workers.record.folder import read_spec
        from cryobench.workers.place import Place
        from cryobench.workers.trial import run_trial
        real = attempt.make_optimizer
        def limited(*arguments):
            now = psutil.Process().memory_info().vms + 150_000_000
            if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
                resource.setrlimit(resource.RLIMIT_AS, (now, now))
            return real(*arguments)
        attempt.make_optimizer = limited
        try:
            run_trial(read_spec(Path({str(path)!r})), Place(Path({str(place.storage)!r}), Path({str(place.data_dir)!r}),
                Path({str(place.cache_dir)!r}), device="cpu"))
        except Exception as error:
            print(type(error).__name__)
    """)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert "OutOfMemoryError" in done.stdout, done.stderr[-2000:]
    assert TrialFolder(place.storage, spec.trial_id).state().kind == "out_of_memory"


def test_a_read_that_hangs_ends_the_attempt_with_all_stacks(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reads = CachedTiles.crop, 0

    def hung(self: CachedTiles, *where: Any) -> np.ndarray[Any, Any]:
        nonlocal reads
        reads += 1
        if reads == 20:
            time.sleep(3)
        return real(self, *where)

    monkeypatch.setattr(CachedTiles, "crop", hung)
    with pytest.raises(HungReadError, match=r"did not come back within 0\.5 s"):
        run_trial(one_trial(), replace(place, resources=ResourceSpec(stall_timeout_s=0.5, loader_threads=1)))
    folder = TrialFolder(place.storage, one_trial().trial_id)
    assert folder.state().kind == "hung_read"
    assert not folder.state().waits_for_user
    assert "in hung" in (folder.path / "stacks.txt").read_text()
    monkeypatch.undo()
    assert run_trial(one_trial(), place).reproducible() == whole(place, one_trial()).reproducible()
