"""A worker killed or asked to leave, a node out of memory: the sweep goes on to the same end."""

import signal
from pathlib import Path

import pytest
from sweeping import SMALL, Command, check_same_and_once, events, kill_worker

from cryobench.orchestrator.results.tracking import default_uri
from cryobench.workers.record.folder import all_trials


@pytest.mark.slow
def test_killing_a_worker_ends_the_same(undisturbed: Command, tmp_path: Path) -> None:
    kill_worker(Command(tmp_path / "storage", undisturbed.data_dir, SMALL), undisturbed.storage, at_epochs=4)


@pytest.mark.slow
def test_a_worker_on_a_machine_that_goes_away_leaves_and_its_trial_continues(
    undisturbed: Command, tmp_path: Path
) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    kill_worker(command, undisturbed.storage, at_epochs=4, how=signal.SIGTERM)
    assert sum(events(command.storage, "interrupted").values()) >= 1


@pytest.mark.slow
def test_a_node_that_runs_out_of_memory_does_not_end_the_sweep(
    undisturbed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune itself gives up when Ray ends a worker to save its node; here it does so in the middle of the sweep.

    The driver starts a Ray of its own, which alone it may start again; so this is the file's last test.
    """
    import ray

    ray.shutdown()
    from ray import tune
    from ray.tune.execution.tune_controller import TuneController
    from rich.console import Console

    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.driver import run_sweep
    from cryobench.orchestrator.sweep.plan import make_plan

    assert tune
    storage = tmp_path / "storage"
    where = places(str(storage), data_dir=str(undisturbed.data_dir), cache_dir=str(tmp_path / "cache"))
    real, struck = TuneController.step, []

    def step(self: TuneController) -> None:
        real(self)
        if not struck and sum(len(f.epochs()) for f in all_trials(storage)) >= 3:
            struck.append(True)
            raise RuntimeError("1 worker(s) were killed due to the node running low on memory.")

    monkeypatch.setattr(TuneController, "step", step)
    console = Console(record=True, width=200)
    plan = make_plan(load_sweep(SMALL), where)
    outcome = run_sweep(plan, where, console, uri=default_uri(storage))
    assert struck
    assert outcome.counts == {"completed": 4}
    assert "A node ran out of memory; going on from the last checkpoints, 1 at a time" in console.export_text()
    check_same_and_once(Command(storage, undisturbed.data_dir, SMALL), undisturbed.storage)
