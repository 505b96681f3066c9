import numpy as np
import pytest
import torch

from cryobench.conf.errors import CorruptDataError
from cryobench.conf.trial import Feed, Source
from cryobench.datasets.batches.preprocess import Preprocess
from cryobench.datasets.store.tile_store import TileStore


def module(store: TileStore, size: int | None = None, statistics: str = "training") -> Preprocess:
    optical = (Source(group="optical", index=2), None, Source(group="optical", index=0))
    return Preprocess(store.info, Feed(inputs={"optical": optical}), statistics, size)


def test_bands_are_picked_normalised_and_zero_where_absent(glid_store: TileStore) -> None:
    raw = torch.from_numpy(np.stack([glid_store.tile("train", "optical", i) for i in range(2)]))
    out = module(glid_store)({"optical": raw})["optical"]
    stats = glid_store.info.groups["optical"].statistics
    assert out.dtype == torch.float32
    for place, band in ((0, 2), (2, 0)):
        expected = (raw[:, band].double() - stats.mean[band]) / stats.std[band]
        torch.testing.assert_close(out[:, place].double(), expected, rtol=0, atol=1e-5)
    assert (out[:, 1] == 0).all()


def test_small_crops_are_padded_with_the_mean_and_ignored_labels(glid_store: TileStore) -> None:
    raw = torch.from_numpy(glid_store.tile("train", "optical", 0)[None, :, :40, :50].copy())
    made = module(glid_store, size=64)
    out = made({"optical": raw})["optical"]
    assert out.shape == (1, 3, 64, 64)
    assert (out[..., 40:, :] == 0).all()
    assert (out[..., :, 50:] == 0).all()
    labels = made.labels(torch.zeros(1, 40, 50, dtype=torch.uint8))
    assert labels.shape == (1, 64, 64)
    assert (labels[0, 40:] == 255).all()
    assert (labels[0, :40, :50] == 0).all()


def test_sixteen_bit_values_keep_their_value() -> None:
    assert torch.tensor([65535], dtype=torch.uint16).float().item() == 65535


def test_published_statistics_are_a_configuration_value(glid_store: TileStore) -> None:
    raw = torch.full((1, 3, 4, 4), 120, dtype=torch.uint8)
    out = module(glid_store, statistics="published")({"optical": raw})["optical"]
    assert out[0, 2, 0, 0].item() == pytest.approx((120 - 120.09) / 74.65, abs=1e-6)


def test_missing_published_statistics_are_explained(glid_store: TileStore) -> None:
    group = glid_store.info.groups["optical"].model_copy(update={"published": None})
    info = glid_store.info.model_copy(update={"groups": {"optical": group}})
    with pytest.raises(CorruptDataError, match="no published statistics. Set statistics=training"):
        Preprocess(info, Feed(inputs={"optical": (Source(group="optical", index=0),)}), "published", None)
