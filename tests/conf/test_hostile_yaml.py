"""Configuration files and overrides as they should not be: one clear error each, in time."""

import os
from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset, load_encoder, load_sweep
from cryobench.conf.errors import ConfigError

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(9))}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"title: [1, 2", "is not YAML"),
        (b"title:\n\t- x", "is not YAML"),
        (b"title: !!python/object/apply:os.system [true]", "the tag .* is not allowed"),
        (b"title: !mine x", "the tag !mine is not allowed"),
        (b"title: \xff\xfe", "is not UTF-8"),
        (b"- a\n- b", "found a list"),
        (b"just text", "found a single value"),
        (b"title: a\ntitle: b", "'title' stands there twice"),
        (b"? [1, 2]\n: x", "a list as a name"),
        (b"a: &x\n  b: *x", "holds itself"),
        (ALIASES.encode(), "aliases make more than 100,000 values"),
        (b"a: " + b"[" * 2000 + b"]" * 2000, "nested"),
        (b"x: " + b"a" * 1_100_000, "expected a configuration of at most"),
        (b"title: ${", "Cannot compose"),
        (b"title: ${nowhere}", "Cannot compose"),
        (b"title: ${oc.env:HOME}", "environment's HOME may not be used here"),
        (b"title: ${oc.${x}:HOME}\nx: env", "environment's HOME may not be used here"),
        (b"defaults: [mine]", "lead back to themselves: encoder/mine -> encoder/mine"),
        (b"defaults: [other]", "lead back to themselves"),
        (b"defaults: [nobody]", "Cannot compose"),
        (b"defaults: 7", "defaults: expected a list"),
        (b"", "title: Field required"),
        (b"1: 2", "1: no such field"),
    ],
)
def test_a_file_is_refused_with_one_message(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine.yaml").write_bytes(content)
    (tmp_path / "encoder" / "other.yaml").write_text("defaults: [mine]")
    with pytest.raises(ConfigError, match=said):
        load_encoder("mine", tmp_path)
    with pytest.raises(ConfigError, match=said):
        load_sweep(["sweep=demo", "encoders=[mine]"], tmp_path)
    # A broken file concerns only who names it.
    assert load_encoder("unet", tmp_path).name == "unet"
    assert load_sweep(["sweep=demo"], tmp_path).name == "demo"


def test_a_folder_or_a_pipe_named_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "dataset" / "mine.yaml").mkdir(parents=True)
    os.mkfifo(tmp_path / "dataset" / "pipe.yaml")
    for name in ("mine", "pipe"):
        with pytest.raises(ConfigError, match="is not a file"):
            load_dataset(name, tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "lr=inf",
        "lr=nan",
        "lr=-1e-3",
        "lr=[]",
        f"lr=[{','.join(str(i) for i in range(1, 20001))}]",
        "protocol.weight_decay=inf",
        "protocol.betas=[2,2]",
        "protocol.betas=[0.9,1.0]",
        "protocol.crops_per_tile=1000000000000000000",
        "protocol.epochs=100000000000000000000",
        "resources.cache_limit_gb=inf",
        "resources.stall_timeout_s=1e-9",
        "resources.stall_timeout_s=inf",
        "seeds=[36893488147419103232]",
        "seeds=[-1]",
        f"name={'x' * 4000}",
        "name=a/b",
        "name=${oc.env:HOME}",
        "name=${oc.decode:${oc.env:HOME}}",
        "name=${",
        "+learning_rate=3",
        "learning_rate=3",
        "~name",
        "protocol=[paper,small]",
        "encoders=7",
        "encoders=[[unet]]",
        "sweep=",
        "=",
        "lr",
    ],
)
def test_an_override_is_refused_with_one_message(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_sweep(["sweep=demo", override])
    assert os.environ["HOME"] not in str(refused.value)


def test_a_path_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAST_DISK", "/fast")
    found = load_sweep(["sweep=demo", "resources.cache_dir=${oc.env:FAST_DISK}/tiles"])
    assert found.resources.cache_dir == "/fast/tiles"
