import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from cryobench.encoders.golden import GOLDEN_DIR, read_golden
from cryobench.workers.training.metrics import bootstrap_miou, confusion, metrics

GOLDEN = read_golden(GOLDEN_DIR / "protocol.json")


@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_are_the_references(seed: int) -> None:
    expected = GOLDEN[f"metrics_seed{seed}"]
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, size=(3, 40, 60))
    truth[rng.random(truth.shape) < 0.1] = 255
    guess = np.where(rng.random(truth.shape) < 0.6, np.where(truth == 255, 0, truth), rng.integers(0, 4, truth.shape))
    matrix = confusion(torch.from_numpy(guess), torch.from_numpy(truth), 5, 255)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == expected["confusion_rows_prediction_columns_target"]
    found = metrics(matrix.numpy())
    assert found.miou == pytest.approx(expected["miou"], abs=1e-4)
    assert found.mean_f1 == pytest.approx(expected["mean_f1"], abs=1e-4)
    assert found.overall_accuracy == pytest.approx(expected["overall_accuracy"], abs=1e-4)
    for name in ("iou", "f1", "precision", "recall"):
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, 4, 5000), rng.integers(0, 4, 5000)
    found = metrics(confusion(torch.from_numpy(guess), torch.from_numpy(truth), 4, 255).numpy())
    for name, score in (
        ("iou", jaccard_score),
        ("f1", f1_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        np.testing.assert_allclose(getattr(found, name), 100 * score(truth, guess, average=None), rtol=1e-12)
    assert found.overall_accuracy == pytest.approx(100 * accuracy_score(truth, guess))


def test_counts_past_two_to_the_24_lose_nothing() -> None:
    matrix = np.array([[2**24 + 1, 1], [0, 2**24 + 3]], np.int64)
    assert metrics(matrix).recall[0] == 100.0
    assert metrics(matrix).recall[1] == 100 * (2**24 + 3) / (2**24 + 4)


def test_the_bootstrap_interval_is_seeded_and_holds_the_estimate() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 100, size=(40, 3, 3)) + np.eye(3, dtype=np.int64) * 200
    low, high = bootstrap_miou(tiles, 500, seed=1)
    assert (low, high) == bootstrap_miou(tiles, 500, seed=1)
    assert low < metrics(tiles.sum(axis=0)).miou < high
    draws = [metrics(tiles[rng.integers(0, 40, 40)].sum(axis=0)).miou for _ in range(2000)]
    np.testing.assert_allclose((low, high), np.percentile(draws, [2.5, 97.5]), atol=0.25)


def test_a_single_tile_has_no_spread() -> None:
    tiles = np.array([[[5, 1], [2, 7]]], np.int64)
    assert bootstrap_miou(tiles, 100, seed=1) == pytest.approx((metrics(tiles[0]).miou,) * 2)
