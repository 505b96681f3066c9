"""Whole sweeps that search learning rates: stopped early and gone on with, suggested and killed in between."""

import json
from pathlib import Path

import psutil
import pytest
from sweeping import Command, events
from typer.testing import CliRunner

from cryobench.orchestrator.cli import app
from cryobench.orchestrator.results.leaderboard import read_leaderboard
from cryobench.orchestrator.results.tracking import default_uri
from cryobench.orchestrator.sweep.suggestions import left_to_suggest, read_suggestions
from cryobench.orchestrator.sweep_record import read_sweep
from cryobench.workers.place import Place
from cryobench.workers.record.events import Ended, EpochFinished
from cryobench.workers.record.folder import TrialFolder, all_trials
from cryobench.workers.trial import run_trial

ONE_CELL = (
    "sweep=demo",
    "encoders=[unet_small]",
    "datasets=[glid]",
    "regimes=[finetune]",
    "lr_search=null",
    "protocol.bootstrap_samples=100",
    "protocol.eval_every=1",
)
ABSURD = 1e-8


def by_state(storage: Path) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {}
    for folder in all_trials(storage):
        found.setdefault(folder.state().status, set()).add(folder.spec().lr)
    return found


def told(storage: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--storage", str(storage)])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def run_tags(storage: Path) -> dict[str, tuple[str, str]]:
    """By trial, the status of its MLflow run and its tag of that name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(storage))
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "trial_id" in run.data.tags]
    return {run.data.tags["trial_id"]: (run.info.status, run.data.tags["status"]) for run in runs}


def test_epochs_are_tunes_iterations_whatever_number_of_reports_there_were(shared_ray: None, tmp_path: Path) -> None:
    from ray import tune

    from cryobench.orchestrator.sweep.reporter import Reporter

    def train(config: dict[str, str]) -> None:
        report = Reporter(tune.report, iter(range(100)).__next__)
        for number in (5, 6, 7):
            report(EpochFinished(epoch=number, loss=1.0, lr=1e-3, seconds=1.0))
        report(Ended(status="completed"))

    run_config = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    (result,) = tune.Tuner(tune.with_parameters(train), run_config=run_config).fit()
    assert result.metrics["training_iteration"] == 7
    assert result.metrics["iterations_since_restore"] == 4


@pytest.mark.slow
def test_a_hopeless_rate_is_stopped_early_and_trained_to_the_same_end_later(
    data_dir: Path, tmp_path: Path, shared_ray: None
) -> None:
    # The absurd rate comes last, when another has passed the first rung.
    overrides = (*ONE_CELL, f"lr=[1e-3,3e-3,{ABSURD:g}]", "protocol.epochs=24", "protocol.crops_per_tile=4")
    searching = Command(tmp_path / "storage", data_dir, (*overrides, "scheduler=asha"))
    storage = searching.storage
    said = searching.run_here()
    states = by_state(storage)
    assert states.keys() == {"completed", "pruned"}
    assert ABSURD in states["pruned"]
    pruned = {f.trial_id for f in all_trials(storage) if f.state().status == "pruned"}
    count = len(pruned)
    assert f"{3 - count} completed, {count} pruned" in said
    assert "is behind other learning rates" in said
    hopeless = next(f for f in all_trials(storage) if f.spec().lr == ABSURD)
    assert 3 <= hopeless.state().epoch < 24
    assert sum(events(storage, "stopped_early").values()) == count

    rows = read_leaderboard(storage)
    assert pruned.isdisjoint(rows["trial_id"].to_pylist())
    assert rows.num_rows == 3 - count
    assert {run_tags(storage)[trial] for trial in pruned} == {("KILLED", "pruned")}
    assert f"{count} pruned" in told(storage, "status", "demo")
    assert "3 of 3 trials done" in told(storage, "status", "demo")
    found = json.loads(told(storage, "status", "demo", "--json"))
    assert (found["counts"]["pruned"], found["expected_end"]) == (count, None)
    lines = told(storage, "logs", hopeless.trial_id, "--follow")  # and does not wait for more
    assert f"stopped early after epoch {hopeless.state().epoch}: asha: validation mIoU" in lines
    assert "driver: ended" in lines

    again = searching.run_here()  # its scheduler gave them up: they stay so
    assert "0 to run" in again
    assert f"{count} were stopped early before and are not run without --retry-pruned." in again
    assert by_state(storage) == states

    whole = Command(storage, data_dir, overrides)
    assert f"{count} completed" in whole.run_here()
    assert by_state(storage) == {"completed": {1e-3, 3e-3, ABSURD}}
    assert read_leaderboard(storage).num_rows == 3
    assert set(run_tags(storage).values()) == {("FINISHED", "completed")}
    undisturbed = run_trial(
        hopeless.spec(), Place(tmp_path / "undisturbed", data_dir, tmp_path / "cache", device="cpu")
    )
    result = hopeless.result()
    assert result is not None
    assert result.reproducible() == undisturbed.reproducible()
    alone = TrialFolder(tmp_path / "undisturbed", hopeless.trial_id)
    assert [e.values() | {"seconds": 0} for e in hopeless.epochs()] == [
        e.values() | {"seconds": 0} for e in alone.epochs()
    ]


@pytest.mark.slow
def test_retry_pruned_trains_what_the_scheduler_gave_up(data_dir: Path, tmp_path: Path, shared_ray: None) -> None:
    overrides = (*ONE_CELL, "lr=[3e-3,1e-3,1e-8]", "protocol.epochs=16", "protocol.crops_per_tile=4")
    command = Command(tmp_path / "storage", data_dir, (*overrides, "scheduler=median"))
    command.run_here()
    pruned = by_state(command.storage).get("pruned", set())
    assert ABSURD in pruned
    assert f"{len(pruned)} completed" in command.run_here("demo", "--retry-pruned", name="resume")
    assert by_state(command.storage).keys() == {"completed"}


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_within_its_budget(data_dir: Path, tmp_path: Path, shared_ray: None) -> None:
    pytest.importorskip("optuna")
    budget = 7  # two at the start and one for each that ends: some are left however many end at once
    asked = (*ONE_CELL[:4], *ONE_CELL[5:], "lr=[1e-3]", "search=optuna", "protocol.epochs=4")
    search = f"lr_search={{regimes:[finetune],lr:[1e-5,1e-1],samples:{budget}}}"
    command = Command(tmp_path / "storage", data_dir, (*asked, search, "protocol.crops_per_tile=8"))
    storage = command.storage
    process = command.start()
    command.wait_for(lambda: len(command.finished()) >= 2 and len(read_suggestions(storage, "demo")) >= 2, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    before = [one.lr for one in read_suggestions(storage, "demo")]
    assert 2 <= len(before) < budget
    assert left_to_suggest(storage, "demo") == budget - len(before)
    assert "to be suggested" in told(storage, "status", "demo")
    complete = {f.trial_id: len(f.events()) for f in command.finished()}

    said = command.run_here()
    for left in psutil.wait_procs(tree, timeout=0)[1]:  # Ray's agents take a minute to notice that they are alone
        left.kill()
    assert f"up to {budget - len(before)} to be suggested" in said
    found = [one.lr for one in read_suggestions(storage, "demo")]
    assert found[: len(before)] == before
    assert len(found) == len({*found}) == budget
    assert by_state(storage) == {"completed": {1e-3, *found}}
    assert read_leaderboard(storage).num_rows == 1 + budget
    assert len(run_tags(storage)) == 1 + budget
    assert set(read_sweep(storage, "demo").trials) == {f.trial_id for f in all_trials(storage)}
    for folder in command.finished():
        if folder.trial_id in complete:
            assert len(folder.events()) == complete[folder.trial_id]  # what was finished was not touched
    assert "0 to run" in (again := command.run_here())
    assert "to be suggested" not in again
    assert len(read_suggestions(storage, "demo")) == budget
    assert f"{1 + budget} of {1 + budget} trials done" in told(storage, "status", "demo")
