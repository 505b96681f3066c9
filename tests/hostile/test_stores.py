"""Tile stores that are not what ``data prepare`` writes, although their digests fit: one clear error wherever used."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Terminal

from cryobench.conf.errors import CorruptDataError, MissingDataError
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.store_info import ATTRIBUTE, INDEX, description_digest
from cryobench.datasets.store.tile_store import TileStore
from cryobench.workers.record.files import write_json
from cryobench.workers.record.folder import SPEC_FORMAT

Plain = dict[str, Any]


def change(store: Path, alter: Callable[[Plain], object]) -> None:
    """Alter a store's description, and make its digest fit again."""
    whole = json.loads((store / "zarr.json").read_bytes())
    plain = whole["attributes"][ATTRIBUTE]
    alter(plain)
    plain["described"] = description_digest(plain)
    (store / "zarr.json").write_text(json.dumps(whole))


def change_index(store: Path, alter: Callable[[pa.Table], pa.Table]) -> None:
    """Alter a store's index, and make all digests fit again."""
    target = io.BytesIO()
    pq.write_table(alter(pq.read_table(store / INDEX)), target)
    (store / INDEX).write_bytes(target.getvalue())
    change(store, lambda plain: plain.update(index_sha256=hashlib.sha256(target.getvalue()).hexdigest()))


def in_splits(**values: object) -> Callable[[Plain], object]:
    return lambda plain: [split.update(values) for split in plain["splits"].values()]


def in_group(**values: object) -> Callable[[Plain], object]:
    return lambda plain: plain["groups"]["optical"].update(values)


def in_statistics(**values: object) -> Callable[[Plain], object]:
    return lambda plain: plain["groups"]["optical"]["statistics"].update(values)


DESCRIPTIONS: dict[str, Callable[[Plain], object]] = {
    "no val": lambda plain: plain["splits"].pop("val"),
    "no train": lambda plain: plain["splits"].pop("train"),
    "no splits": lambda plain: plain.update(splits={}),
    "another split": lambda plain: plain["splits"].update(more=plain["splits"]["val"]),
    "no tiles": in_splits(tiles=0),
    "fewer than no tiles": in_splits(tiles=-1),
    "10^18 tiles": in_splits(tiles=10**18),
    "10^30 tiles": in_splits(tiles=10**30),
    "no pixels": in_splits(height=0),
    "negative pixels": in_splits(height=-64, width=-64),
    "10^9 pixels a side": in_splits(height=10**9, width=10**9),
    "half a pixel": in_splits(height=0.5),
    "no pixel counts": in_splits(class_pixels=[]),
    "negative pixel counts": in_splits(class_pixels=[-1, -1, -1]),
    "object": in_group(dtype="|O"),
    "nonsense": in_group(dtype="nonsense"),
    "big-endian": in_group(dtype=">f4"),
    "complex": in_group(dtype="<c8"),
    "text": in_group(dtype="<U9999999"),
    "fields": in_group(dtype="f4,f4"),
    "10^6 of a dtype": in_group(dtype="1000000f4"),
    "no bands": in_group(bands=[]),
    "other bands": in_group(bands=["a"]),
    "10^5 bands": in_group(bands=["a"] * 10**5),
    "no groups": lambda plain: plain.update(groups={}),
    "a group out of the folder": lambda plain: plain["groups"].update({"../x": plain["groups"]["optical"]}),
    "no means": in_statistics(mean=[]),
    "infinite": in_statistics(std=[1e999] * 4),
    "negative deviation": in_statistics(std=[-1.0] * 4),
    "no percentiles": in_statistics(percentiles={}),
    "short percentiles": in_statistics(percentiles={"1": [], "50": [], "99": []}),
    "no classes": lambda plain: plain.update(classes=[]),
    "one class": lambda plain: plain.update(classes=["a"]),
    "300 classes": lambda plain: plain.update(classes=[str(i) for i in range(300)]),
    "another ignored value": lambda plain: plain.update(ignore_index=0),
    "another data set": lambda plain: plain.update(dataset={}),
    "no data set": lambda plain: plain.update(dataset=None),
    "text for numbers": lambda plain: plain.update(splits="many"),
    "a digest of another type": lambda plain: plain.update(digest=7),
    "of a later release": lambda plain: plain.update(format=99),
    "format of another type": lambda plain: plain.update(format=[3]),
}

INDEXES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "other columns": lambda table: pa.table({"a": list(range(table.num_rows))}),
    "a column less": lambda table: table.drop_columns(["checks"]),
    "another column": lambda table: table.append_column("more", pa.array([1] * table.num_rows)),
    "no rows": lambda table: table.slice(0, 0),
    "a row less": lambda table: table.slice(1),
    "rows twice": lambda table: pa.concat_tables([table, table]),
    "another order": lambda table: table.take(list(reversed(range(table.num_rows)))),
    "an unknown split": lambda table: other(table, "split", ["x"] * table.num_rows),
    "all of one split": lambda table: other(table, "split", ["train"] * table.num_rows),
    "numbers of no tile": lambda table: other(table, "index", [10**6] * table.num_rows),
    "negative numbers": lambda table: other(table, "index", [-1] * table.num_rows),
    "numbers for digests": lambda table: other(table, "digests", [1] * table.num_rows),
    "no checks": lambda table: other(table, "checks", [None] * table.num_rows),
    "nulls": lambda table: other(table, "class_pixels", [None] * table.num_rows),
    "short counts": lambda table: other(table, "class_pixels", [[1]] * table.num_rows),
}


def other(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def write(content: bytes) -> Callable[[Path], object]:
    return lambda store: (store / "zarr.json").write_bytes(content)


def to_a_pipe(name: str) -> Callable[[Path], object]:
    def replace(store: Path) -> None:
        (store / name).unlink()
        os.mkfifo(store / name)

    return replace


def to_a_sparse_file(name: str) -> Callable[[Path], object]:
    return lambda store: os.truncate(store / name, 2**40)


def to_an_endless_file(name: str) -> Callable[[Path], object]:
    def replace(store: Path) -> None:
        (store / name).unlink()
        (store / name).symlink_to("/dev/zero")

    return replace


FILES: dict[str, Callable[[Path], object]] = {
    "deep JSON": write(b"[" * 10**6),
    "deep JSON in its place": write(b'{"attributes": {"cryobench": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}}"),
    "a long number": write(b'{"attributes": {"cryobench": {"format": ' + b"9" * 10**5 + b"}}}"),
    "not UTF-8": write(b"\xff\xfe{}"),
    "empty": write(b""),
    "no attributes": write(b"{}"),
    "attributes of another type": write(b'{"attributes": {"cryobench": 7}}'),
    "a pipe": to_a_pipe("zarr.json"),
    "a sparse file": to_a_sparse_file("zarr.json"),
    "an endless file": to_an_endless_file("zarr.json"),
    "no file": lambda store: (store / "zarr.json").unlink(),
    "a file for a store": lambda store: (shutil.rmtree(store), store.write_text("x")),
    "nothing": lambda store: shutil.rmtree(store),
    "an index that is a pipe": to_a_pipe(INDEX),
    "an index without an end": to_an_endless_file(INDEX),
    "no index": lambda store: (store / INDEX).unlink(),
}

CASES: dict[str, Callable[[Path], object]] = {
    **{what: (lambda store, alter=alter: change(store, alter)) for what, alter in DESCRIPTIONS.items()},
    **{f"index: {what}": (lambda store, alter=alter: change_index(store, alter)) for what, alter in INDEXES.items()},
    **FILES,
}


@pytest.fixture
def data(tmp_path: Path, data_dir: Path) -> Path:
    """A data folder with a store of its own, to be damaged."""
    shutil.copytree(data_dir / "glid.zarr", tmp_path / "data" / "glid.zarr")
    return tmp_path / "data"


@pytest.mark.parametrize("what", CASES)
def test_a_store_is_refused_wherever_it_is_used(
    data: Path, tmp_path: Path, terminal: Terminal, one_trial: Callable[..., TrialSpec], what: str
) -> None:
    spec = one_trial()
    write_json(tmp_path / "spec.json", {"format": SPEC_FORMAT, **spec.model_dump(mode="json")})
    CASES[what](data / "glid.zarr")
    with pytest.raises((CorruptDataError, MissingDataError)):
        TileStore(data / "glid.zarr").records("train")
    at = ("--data-dir", str(data))
    places = ("--storage", str(tmp_path / "storage"), "--cache-dir", str(tmp_path / "cache"), *at)
    for command, codes in (
        (("data", "info", "glid", *at), (1, 0) if "index" in what else (1,)),
        (("data", "verify", "glid", *at), (1,)),
        (("data", "list", *at), (0, None)),
        (("plan", "sweep=demo", "datasets=[glid]", *at, "--storage", str(tmp_path / "storage")), (0, 1, None)),
        (("trial", "run", str(tmp_path / "spec.json"), "--device", "cpu", *places), (1,)),
    ):
        answer = terminal.run(*command)
        assert answer.is_clear(), (command, answer)
        assert answer.code in codes, (command, answer)
        if 1 in codes and answer.code == 1:
            assert sum(line.startswith("Error: ") for line in answer.text.splitlines()) == 1, (command, answer)


def test_titles_and_names_of_a_store_are_no_markup(data: Path, terminal: Terminal) -> None:
    def alter(plain: Plain) -> None:
        plain.update(origin="[/]", edition="[bold", written_by="[link=x]", classes=["[/red]", "[blue]"])
        plain["dataset"]["title"] = "[/bold] a title"

    change(data / "glid.zarr", alter)
    for command in ("info", "list"):
        answer = terminal.run("data", command, *(("glid",) if command == "info" else ()), "--data-dir", str(data))
        assert answer.is_clear(), answer
        assert "[/]" in answer.text
