"""compare and trial eval from the command line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.cli import app
from cryobench.workers.place import Place
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]


@pytest.fixture
def finished(place: Place, one_trial: Build) -> TrialFolder:
    spec = one_trial()
    run_trial(spec, place)
    return TrialFolder(place.storage, spec.trial_id)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_compare_says_where_trials_part(finished: TrialFolder, place: Place, one_trial: Build, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere" / finished.trial_id
    shutil.copytree(finished.path, copied)
    storage = ("--storage", str(place.storage))
    code, told = run("compare", finished.trial_id, str(copied), *storage)
    assert code == 0, told
    assert "the same, bit for bit" in told
    other = one_trial("seed=5")
    run_trial(other, place)
    code, told = run("compare", finished.trial_id, other.trial_id, *storage)
    assert code == 1
    assert "asked for differently: seed: 234 | 5" in told
    assert "different from epoch 1 on" in told
    code, told = run("compare", finished.trial_id, other.trial_id, *storage, "--json")
    found = json.loads(told)
    assert (code, found["first_difference"], found["same"]) == (1, 1, False)
    assert found["weights"][0]["differing"] > 0


def test_eval_tests_a_result_again(finished: TrialFolder, place: Place) -> None:
    options = ("--storage", str(place.storage), "--data-dir", str(place.data_dir), "--cache-dir", str(place.cache_dir))
    code, told = run("trial", "eval", finished.trial_id, *options, "--device", "cpu")
    assert code == 0, told
    assert "as recorded, bit for bit" in told
    result = finished.result()
    assert result is not None
    assert result.test is not None
    wrong = result.test.model_copy(update={"overall_accuracy": 1.0})
    finished.write_result(result.model_copy(update={"test": wrong}))
    code, told = run("trial", "eval", finished.trial_id, *options, "--device", "cpu")
    assert code == 1
    assert "overall_accuracy: recorded 1.0, found" in told


def test_the_best_checkpoint_is_the_best_validated_epochs(place: Place, one_trial: Build) -> None:
    """The first of the best; the test is made with its weights, not with the last ones."""
    spec = one_trial("lr=3e-2", "protocol.epochs=8")
    result = run_trial(spec, replace(place))
    scores = [(e.epoch, e.val_miou or 0.0) for e in TrialFolder(place.storage, spec.trial_id).epochs()]
    best = max(score for _, score in scores)
    assert result.best_val_miou == best
    assert result.best_epoch == next(epoch for epoch, score in scores if score == best)
    (path,) = (place.storage / "trials" / spec.trial_id).glob("*.safetensors")
    assert path.name == f"best-{result.best_epoch:04d}.safetensors"
    assert (result.best_weights == result.final_weights) == (result.best_epoch == 8)
