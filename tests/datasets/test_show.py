from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cryobench.conf.compose import load_dataset
from cryobench.datasets.show import contact_sheet, false_colour, shown_bands
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.synth.generate import RECIPES, fitted, generate


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_data_set_has_a_contact_sheet(tmp_path: Path, name: str) -> None:
    generate(name, tmp_path / "raw", tiles=(6, 1, 1), size=48)
    convert(fitted(load_dataset(name), 48), tmp_path / "raw", tmp_path / f"{name}.zarr")
    shown = contact_sheet(TileStore(tmp_path / f"{name}.zarr"), "train", 5, tmp_path / "out" / "sheet.png")
    assert len(shown) == 5
    assert len(set(shown)) == 5
    picture = np.asarray(Image.open(tmp_path / "out" / "sheet.png").convert("RGB"))
    orange = (picture == [255, 127, 14]).all(axis=-1)  # the outline of class 1
    assert orange.sum() > 50


def test_colours_are_the_bands_that_people_see() -> None:
    image = np.arange(5)[:, None, None] * np.ones((5, 4, 4)) + np.linspace(0, 1, 16).reshape(4, 4)
    assert shown_bands(("B2", "B3", "B4", "B8", "B11")) == ("B4", "B3", "B2")
    assert false_colour(image, ("B2", "B3", "B4", "B8", "B11")).shape == (4, 4, 3)
    assert false_colour(image[:2], ("HH", "HV")).shape == (4, 4)
