import pytest
import torch
from torch import Tensor

from cryobench.encoders.golden import GOLDEN_DIR, deviation, noise, read_golden
from cryobench.workers.training.windows import sliding_logits, window_offsets

GOLDEN = read_golden(GOLDEN_DIR / "protocol.json")


@pytest.mark.parametrize("case", GOLDEN["window_offsets"], ids=lambda c: f"{c['side']}-{c['input']}")
def test_offsets_are_the_references(case: dict[str, int]) -> None:
    assert window_offsets(case["side"], case["input"]) == case["offsets"]


def test_a_tile_smaller_than_the_window_has_one() -> None:
    assert window_offsets(200, 224) == [0]


def golden_model(groups: dict[str, Tensor]) -> Tensor:
    x = groups["optical"]
    rows = 1 + torch.arange(x.shape[-2])[:, None] / 48
    columns = 1 + torch.arange(x.shape[-1])[None, :] / 48
    return torch.stack([x.mean(dim=1) * rows, x[:, 0] * columns], dim=1)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_merged_logits_are_the_references(batch: int) -> None:
    image = noise(1, "input:optical", (2, 3, 100, 100))
    merged = sliding_logits(golden_model, {"optical": image}, (48, 48), batch)
    golden = {"outputs": [GOLDEN["sliding_window"]["output"]]}
    assert deviation([merged], golden) <= 1e-4


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (48, 100)])
def test_tiles_need_not_be_square(shape: tuple[int, int]) -> None:
    """The reference mixes up rows and columns here. A model that answers with position must be undone exactly."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    image = torch.stack([rows, columns]).float()[None]
    merged = sliding_logits(lambda g: g["optical"], {"optical": image}, (20, 20), 4)
    torch.testing.assert_close(merged, image)


def test_padding_is_cut_off() -> None:
    image = torch.arange(30.0 * 20).reshape(1, 1, 30, 20)
    padded = lambda g: torch.nn.functional.pad(g["optical"], (0, 12, 0, 2), value=-1)  # noqa: E731
    torch.testing.assert_close(sliding_logits(padded, {"optical": image}, (32, 32), 4), image)
