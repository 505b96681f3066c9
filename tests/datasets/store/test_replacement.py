"""A store replaced by another, and killed at every step of it."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryobench.conf.compose import load_dataset
from cryobench.conf.errors import DataError, MissingDataError
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.replacement import settle
from cryobench.datasets.store.store_info import read_info, staging_path
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.store.verify import verify
from cryobench.datasets.synth.generate import generate

GLID = load_dataset("glid")


class Killed(BaseException):
    """Stands for the end of the process."""


class Killer:
    """Ends the process before or after one of the steps on a store: its renames and removals, also half a removal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Path, step: int) -> None:
        self.left, self.target = step, target
        for module, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.watched(name, getattr(module, name)))

    def watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            found = Path(os.fspath(path))
            ours = (found.is_dir() and found.name.startswith(self.target.name)) or found.name == "conversion.jsonl"
            if not ours:
                return real(path, *args, **kwargs)
            self.step()
            if name == "rmtree" and (found / "train").is_dir():
                real(found / "train")
                self.step()
            result = real(path, *args, **kwargs)
            self.step()
            return result

        return call

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(scope="module")
def raws(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("raws")
    for name, seed in (("old", 1), ("new", 2)):
        generate("glid", folder / name, tiles=(2, 1, 1), size=32, seed=seed)
    return folder / "old", folder / "new"


def test_a_replacement_killed_at_any_step_leaves_a_whole_store_or_none(raws: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = raws
    before = convert(GLID, old, tmp_path / "first" / "glid.zarr").digest
    after = convert(GLID, new, tmp_path / "second" / "glid.zarr").digest
    found: list[str | None] = []
    for step in itertools.count(1):
        target = tmp_path / str(step) / "glid.zarr"
        shutil.copytree(tmp_path / "first" / "glid.zarr", target)
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, target, step)
            with contextlib.suppress(Killed):
                convert(GLID, new, target, force=True)
        if killer.left > 0:
            break
        found.append(read_info(target).digest if target.exists() else None)
        if found[-1] is None:
            with pytest.raises(MissingDataError, match="run the same command again"):
                read_info(target)
        else:
            assert verify(TileStore(target)) == [], step
        if step % 2:  # the next start may be of the same files, by force
            assert convert(GLID, new, target, force=True).digest == after
        else:  # or of the old ones, without
            try:
                assert convert(GLID, old, target).digest == before
            except DataError as error:
                assert "Add --force to replace it" in str(error)  # noqa: PT017
                assert read_info(target).digest == after
        assert verify(TileStore(target)) == [], step
        assert {path.name for path in target.parent.iterdir()} <= {
            "glid.zarr",
            "glid.zarr.lock",
            "glid.zarr.partial",
        }
    assert set(found) == {before, None, after}
    assert len(found) > 6


def test_an_interrupted_replacement_does_not_convert_again(raws: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "glid.zarr"
    convert(GLID, raws[0], target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            convert(GLID, raws[1], target, force=True)
    assert staging_path(target).exists()
    told: list[int] = []
    convert(GLID, raws[1], target, force=True, progress=lambda done, total: told.append(done))
    assert told == []  # all four tiles were finished
    assert {path.name for path in tmp_path.iterdir()} == {"glid.zarr", "glid.zarr.lock"}


def test_a_half_removed_store_is_never_brought_back(raws: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "glid.zarr"
    convert(GLID, raws[0], target)
    target.rename(tmp_path / "glid.zarr.removing")
    shutil.rmtree(tmp_path / "glid.zarr.removing" / "train")
    settle(target)
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["glid.zarr.lock"]


def test_an_unfinished_conversion_killed_while_it_is_removed_is_not_continued(
    raws: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its journal would tell of tiles that are gone."""
    old, new = raws
    target = tmp_path / "glid.zarr"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    real = shutil.rmtree

    def half(path: Path, **_: object) -> None:
        real(path / "train")
        raise Killed

    with pytest.raises(Killed):
        convert(GLID, old, target, progress=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            convert(GLID, new, target)
    convert(GLID, old, target)
    assert verify(TileStore(target)) == []
