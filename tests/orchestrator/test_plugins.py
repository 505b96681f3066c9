"""A third-party package adds an encoder and a reader by entry points and YAML, without touching this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = "from cryobench.orchestrator.cli import main; main()"

ENCODER = """
import torch
from cryobench.encoders.base import Encoder, settings_of, stacked


class Pyramid(Encoder):
    pyramid = True

    def __init__(self, bands, width):
        super().__init__()
        self.stem = torch.nn.Conv2d(bands, width, 4, stride=4)
        self.down = torch.nn.ModuleList(torch.nn.Conv2d(width, width, 2, stride=2) for _ in range(3))
        self.channels = (width,) * 4

    @classmethod
    def build(cls, bands, input_size, settings):
        chosen = settings_of(settings, "pyramid", {"width"})
        return cls(sum(map(len, bands.values())), chosen["width"])

    def forward(self, inputs):
        maps = [self.stem(stacked(inputs))]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return maps
"""

READER = """
import numpy as np
from cryobench.datasets.raw.reader import RawTile, TileFiles


def scan(spec, source):
    return [TileFiles(s, p, p) for s in ("train", "val", "test") for p in sorted((source / s).glob("*.npy"))]


def read(spec, files):
    values = np.load(files.image)
    return RawTile({"optical": values[:-1]}, values[-1].astype("uint8"), None, None)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package, as pip would leave it: modules and metadata on the path."""
    folder = tmp_path_factory.mktemp("plugin")
    site = folder / "site"
    (site / "icy").mkdir(parents=True)
    (site / "icy" / "__init__.py").write_text("")
    (site / "icy" / "encoder.py").write_text(ENCODER)
    (site / "icy" / "reader.py").write_text(READER)
    info = site / "icy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: icy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cryobench.encoders]\npyramid = icy.encoder:Pyramid\n\n[cryobench.readers]\nnumpy = icy.reader\n"
    )
    for group, name, text in (
        ("encoder", "icy", "title: Icy\nfamily: pyramid\ninput_size: 32\nbaseline: true\nsettings: {width: 8}\n"
         "variants: {own: {bands: {optical: dataset}}}\n"),
        ("dataset", "icy_tiles", "title: Icy tiles\nreader: numpy\nchannels: [{name: B4, group: optical}]\n"
         "classes: [rock, ice]\n"),
    ):  # fmt: skip
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(text)
    import numpy as np

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        (folder / "raw" / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 200, (1, 48, 48), dtype=np.uint8)
            np.save(folder / "raw" / split / f"{i}.npy", np.concatenate([image, (image > 100).astype(np.uint8)]))
    return folder


def cryobench(plugin: Path, *arguments: str) -> str:
    import os

    path = os.pathsep.join([str(plugin / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments, "--config-dir", str(plugin / "conf")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=plugin,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugins_encoder_and_reader_run_a_trial(plugin: Path) -> None:
    rows = json.loads(cryobench(plugin, "encoders", "list", "--json"))["encoders"]
    assert next(row for row in rows if row["encoder"] == "icy")["built"]
    cryobench(plugin, "data", "prepare", "icy_tiles", "--source", "raw")
    overrides = ("encoder=icy", "dataset=icy_tiles", "regime=frozen", "protocol.epochs=2", "lr_search=null")
    assert "completed: test mIoU" in cryobench(plugin, "trial", "run", *overrides)


def test_a_plugin_may_not_take_a_name_of_ours(plugin: Path, tmp_path: Path) -> None:
    import os
    import shutil

    shutil.copytree(plugin / "site", tmp_path / "site")
    points = tmp_path / "site" / "icy-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("pyramid =", "unet ="))
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "encoders", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 2
    assert "adds an encoder family 'unet', which is one of cryobench's own" in done.stderr
