"""Ten thousand bad inputs through all doors: each is a clear error or right, nothing else, and none takes long.

Most are valid ones mutated: bytes flipped, cut off or repeated, JSON values of other types in their place. The numbers
of examples add up to 12,600; derandomised, so that every run tries the same ones.
"""

import contextlib
import copy
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_stores import change

from cryobench.conf.compose import Library, load_dataset, load_encoder, load_sweep
from cryobench.conf.errors import CryobenchError
from cryobench.conf.schema import CheckpointLayout, RegimeSpec
from cryobench.datasets.raw.archives import raw_folder
from cryobench.datasets.raw.paired import read
from cryobench.datasets.raw.reader import TileFiles
from cryobench.datasets.store.store_info import ATTRIBUTE, INDEX
from cryobench.datasets.store.tile_store import TileStore
from cryobench.encoders.checkpoints import load_weights
from cryobench.encoders.unet import UNetEncoder
from cryobench.orchestrator.results.leaderboard import read_leaderboard
from cryobench.orchestrator.results.query import plain_rows, run_sql
from cryobench.orchestrator.sweep_record import read_sweep
from cryobench.workers.record.checkpoint import read_pointer
from cryobench.workers.record.folder import TrialFolder, all_trials

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"
Damage = Callable[[bytes], bytes]


def examples(count: int) -> Callable[..., Any]:
    """``count`` examples of 5 s at most each, always the same ones; folders are written anew for each."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count,
        deadline=5000,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
        phases=[Phase.generate],  # shrinking would take longer than all the rest
    )


def answered(door: Callable[[], object]) -> None:
    """Whatever is no error of ours escapes, and fails the test."""
    with contextlib.suppress(CryobenchError):
        door()


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A change of bytes, wherever and however long what it is applied to."""
    kind = draw(st.sampled_from(["flip", "cut", "repeat", "insert", "zero", "swap"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
    values = draw(st.binary(min_size=1, max_size=8))

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        for number, place in enumerate(places):
            at = int(place * len(changed))
            value = values[number % len(values)]
            if kind == "flip" and changed:
                changed[at] ^= value or 1
            elif kind == "cut":
                del changed[at:]
            elif kind == "repeat":
                changed[at:at] = changed[at : at + 16 * (value + 1)]
            elif kind == "insert":
                changed[at:at] = values
            elif kind == "zero":
                changed[at : at + value] = bytes(len(changed[at : at + value]))
            else:
                changed[at : at + 2] = changed[at : at + 2][::-1]
        return bytes(changed)

    return damage


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([[], {}, [[]], {"": None}, "../../x", "${oc.env:HOME}", "${x}", "nan", 1e308, [1] * 300]),
)


@st.composite
def swaps(draw: st.DrawFn) -> Callable[[Any], Any]:
    """A change of one to three values of plain data, wherever they are in it: another one, gone, or once more."""
    choices = draw(st.lists(st.tuples(st.integers(0, 10**6), VALUES, st.integers(0, 5)), min_size=1, max_size=3))

    def swap(plain: Any) -> Any:
        changed = {"": json.loads(json.dumps(plain))}
        for number, drawn, how in choices:
            value = copy.deepcopy(drawn)
            spots = list(places_in(changed))
            holder, key = spots[number % len(spots)]
            if how == 0 and isinstance(holder, dict) and holder is not changed:
                del holder[key]
            elif how == 1 and isinstance(holder, list):
                holder.append(value)
            elif how == 2 and isinstance(holder, dict) and holder is not changed:
                holder[f"{key}x"] = holder.pop(key)
            else:
                holder[key] = value
        return changed[""]

    return swap


def places_in(holder: Any) -> Any:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from places_in(holder[key])


def at_text(damage: Damage, swap: Callable[[Any], Any], *, bytes_too: bool) -> Callable[[bytes], bytes]:
    """Either change of a JSON file."""
    if bytes_too:
        return damage
    return lambda content: json.dumps(swap(json.loads(content))).encode()


# --- configuration -----------------------------------------------------------------------------------------


def load_regime(name: str, folder: Path) -> RegimeSpec:
    with Library(folder) as library:
        return library.load("regime", name, RegimeSpec)


@pytest.mark.parametrize(
    ("group", "model", "load"),
    [
        ("encoder", "terramind", load_encoder),
        ("dataset", "sicd", load_dataset),
        ("regime", "finetune_llrd", load_regime),
    ],
)
@examples(500)
@given(damage=damages(), swap=swaps(), bytes_too=st.booleans())
def test_yaml(
    tmp_path: Path, group: str, model: str, load: Callable[..., Any], damage: Damage, swap: Any, bytes_too: bool
) -> None:
    import yaml

    content = (CONF / group / f"{model}.yaml").read_bytes()
    changed = damage(content) if bytes_too else json.dumps(swap(yaml.safe_load(content))).encode()
    (tmp_path / group).mkdir(exist_ok=True)
    (tmp_path / group / "mine.yaml").write_bytes(changed)
    answered(lambda: load("mine", tmp_path))


NAMES = ["lr", "seeds", "encoders", "protocol.epochs", "protocol.betas", "resources.cache_dir", "+x", "~lr", "name"]
PIECES = ["[", "]", "{", "}", ",", ":", "=", "'", '"', "\\", "${", "}", "null", "1e400", "-", "@", "~", " ", "☃", "\0"]


@examples(1000)
@given(
    name=st.sampled_from(NAMES), value=st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES)).map("".join))
)
def test_overrides(name: str, value: str) -> None:
    answered(lambda: load_sweep(["sweep=demo", f"{name}={value}"]))


# --- records -----------------------------------------------------------------------------------------------


@pytest.fixture
def trial(storage: Path) -> TrialFolder:
    return next(folder for folder in all_trials(storage) if (folder.path / "result.json").exists())


def pointer_or_none(folder: Path) -> object:
    """By contract a pointer that cannot be read is a ValueError: whoever asks begins from the start."""
    with contextlib.suppress(ValueError, OSError):
        return read_pointer(folder)
    return None


@pytest.mark.parametrize("name", ["spec.json", "result.json", "state.json", "events.jsonl", "first.json"])
@examples(700)
@given(damage=damages(), swap=swaps(), bytes_too=st.booleans())
def test_records(storage: Path, trial: TrialFolder, name: str, damage: Damage, swap: Any, bytes_too: bool) -> None:
    path = storage / "sweeps" / name if name == "first.json" else trial.path / name
    kept = path.with_name(f".{name}.kept")
    if not kept.exists():
        kept.write_bytes(path.read_bytes() if path.exists() else b'{"format": 2, "latest": "x", "best": "y"}')
    content = kept.read_bytes()
    if name == "events.jsonl" and not bytes_too:
        lines = content.splitlines()
        changed = b"\n".join([*lines[:1], json.dumps(swap(json.loads(lines[-1]))).encode(), *lines[1:]])
    else:
        changed = at_text(damage, swap, bytes_too=bytes_too)(content)
    path.write_bytes(changed)
    doors: dict[str, Callable[[], object]] = {
        "spec.json": trial.spec,
        "result.json": lambda: (trial.state(), trial.result()),
        "state.json": lambda: pointer_or_none(trial.path),
        "events.jsonl": lambda: (trial.events(), trial.epochs(), trial.state()),
        "first.json": lambda: read_sweep(storage, "first"),
    }
    answered(doors[name])


# --- stores ------------------------------------------------------------------------------------------------


def open_store(path: Path) -> object:
    store = TileStore(path)
    return store.records("train"), store.class_pixels("val")


@examples(1200)
@given(swap=swaps())
def test_store_descriptions(tmp_path: Path, data_dir: Path, swap: Callable[[Any], Any]) -> None:
    store = tmp_path / "glid.zarr"
    if not store.exists():
        store.mkdir()
        shutil.copy(data_dir / "glid.zarr" / INDEX, store / INDEX)
    shutil.copy(data_dir / "glid.zarr" / "zarr.json", store / "zarr.json")
    plain = json.loads((store / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]
    changed = swap(plain)
    assume(isinstance(changed, dict))

    def alter(found: dict[str, Any]) -> None:
        found.clear()
        found.update(changed)

    change(store, alter)
    answered(lambda: open_store(store))


@pytest.mark.parametrize("name", ["zarr.json", INDEX])
@examples(300)
@given(damage=damages())
def test_store_files(tmp_path: Path, data_dir: Path, name: str, damage: Damage) -> None:
    store = tmp_path / "glid.zarr"
    store.mkdir(exist_ok=True)
    for file in ("zarr.json", INDEX):
        content = (data_dir / "glid.zarr" / file).read_bytes()
        (store / file).write_bytes(damage(content) if file == name else content)
    if name == INDEX:
        change(store, lambda plain: plain.update(index_sha256=""))  # as in stores of format 2
    answered(lambda: open_store(store))


# --- raw files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory, raw_glid: Path) -> dict[str, bytes]:
    files = [path for path in sorted(raw_glid.rglob("*")) if path.is_file()][:6]
    made: dict[str, bytes] = {}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(raw_glid))
    made["zip"] = target.getvalue()
    for kind in ("", "gz", "xz"):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode=f"w:{kind}") as packed:
            for path in files:
                packed.add(path, str(path.relative_to(raw_glid)))
        made["tar" + (f".{kind}" if kind else "")] = target.getvalue()
    return made


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@examples(200)
@given(damage=damages())
def test_archives(tmp_path: Path, archives: dict[str, bytes], kind: str, damage: Damage) -> None:
    path, target = tmp_path / f"glid.{kind}", tmp_path / "unpacked"
    path.write_bytes(damage(archives[kind]))
    shutil.rmtree(target, ignore_errors=True)
    before = set(tmp_path.iterdir())
    answered(lambda: raw_folder(load_dataset("glid"), path, target))
    assert {one.name for one in set(tmp_path.iterdir()) - before} <= {"unpacked", "unpacked.partial"}


@pytest.fixture(scope="session")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An image and a mask of the data set glid's bands, as GeoTIFF and as PNG."""
    folder, made = tmp_path_factory.mktemp("rasters"), {}
    rng = np.random.default_rng(0)
    for kind, driver, bands in (("tif", "GTiff", len(load_dataset("glid").channels)), ("png", "PNG", 3)):
        values = rng.integers(0, 255, (bands, 32, 32)).astype(np.uint8)
        with rasterio.open(folder / f"x.{kind}", "w", driver, 32, 32, bands, dtype="uint8") as file:
            file.write(values)
        made[kind] = (folder / f"x.{kind}").read_bytes()
    with rasterio.open(folder / "mask.tif", "w", "GTiff", 32, 32, 1, dtype="uint8") as file:
        file.write(np.zeros((1, 32, 32), np.uint8))
    made["mask"] = (folder / "mask.tif").read_bytes()
    return made


@pytest.mark.parametrize("kind", ["tif", "png"])
@examples(900)
@given(damage=damages())
def test_rasters(tmp_path: Path, rasters: dict[str, bytes], kind: str, damage: Damage) -> None:
    image, mask = tmp_path / f"x.{kind}", tmp_path / "mask.tif"
    image.write_bytes(damage(rasters[kind]))
    mask.write_bytes(rasters["mask"])
    answered(lambda: read(load_dataset_once(), TileFiles("train", image, mask)))


def load_dataset_once(found: list[Any] = []) -> Any:  # noqa: B006
    if not found:
        found.append(load_dataset("glid"))
    return found[0]


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("checkpoints")
    tensors = UNetEncoder(3, (4, 8)).state_dict()
    torch.save({"model": tensors, "epoch": 9}, folder / "x.pth")
    torch.save({"model": tensors}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "x.safetensors")
    return {name: (folder / name).read_bytes() for name in ("x.pth", "old.pth", "x.safetensors")}


@pytest.mark.parametrize("name", ["x.pth", "old.pth", "x.safetensors"])
@examples(400)
@given(damage=damages())
def test_checkpoints(tmp_path: Path, checkpoints: dict[str, bytes], name: str, damage: Damage) -> None:
    path = tmp_path / name
    path.write_bytes(damage(checkpoints[name]))
    key = None if name.endswith("safetensors") else "model"
    answered(lambda: load_weights(UNetEncoder(3, (4, 8)), path, CheckpointLayout(key=key)))


# --- the leaderboard ---------------------------------------------------------------------------------------

WORDS = [
    *(
        "select",
        "from",
        "leaderboard",
        "where",
        "*",
        "test_miou",
        "encoder",
        "group by",
        "order by",
        "cast(",
        "as",
        "(",
    ),
    *(
        ")",
        ",",
        "'",
        '"',
        ";",
        "--",
        "/*",
        "1",
        "null",
        "'x'",
        "interval",
        "[",
        "]",
        "{",
        "}",
        "::date",
        "::int",
        "copy",
    ),
    *("pragma", "set", "attach", "count(*)", "union all", "with", "limit 1", "over ()", "=", "<", "%", "\0", "☃", "--"),
]


@examples(700)
@given(words=st.lists(st.sampled_from(WORDS), max_size=12), text=st.text(max_size=10), at=st.integers(0, 12))
def test_queries(words: list[str], text: str, at: int) -> None:
    rows = query_rows()
    query = " ".join([*words[:at], text, *words[at:]])
    answered(lambda: plain_rows(run_sql(rows, f"select {query}")))


def query_rows() -> Any:
    import pyarrow as pa

    return pa.table({"encoder": ["unet", None], "test_miou": [1.0, float("nan")]})


@examples(300)
@given(damage=damages())
def test_leaderboard_files(storage: Path, damage: Damage) -> None:
    path = storage / "leaderboard" / "leaderboard.parquet"
    kept = path.with_name(".kept")
    if not kept.exists():
        kept.write_bytes(path.read_bytes())
    path.write_bytes(damage(kept.read_bytes()))
    answered(lambda: read_leaderboard(storage).to_pylist())
