"""Every built encoder against the reference's golden outputs, through published files and the real loader."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cryobench.conf.compose import load_encoder, load_encoders
from cryobench.conf.errors import ConfigError
from cryobench.encoders.golden import (
    GOLDEN_DIR,
    TOLERANCE,
    check_encoder,
    deviation,
    encoder_goldens,
    golden_inputs,
    match_golden,
    read_golden,
)
from cryobench.encoders.registry import family_class, is_built

#: Seconds and a few hundred MB each; the others are marked slow.
QUICK = {"unet", "s12_moco", "s12_dino", "s12_mae_optical", "s12_mae_sar", "s12_data2vec", "vit", "remoteclip"}
QUICK |= {"prithvi", "satlasnet", "spectralgpt", "ramen_optical", "terramind_optical", "terramind_joint", "dofa_sar"}
ALL = sorted(path.stem for path in GOLDEN_DIR.glob("*.json") if "upernet" not in path.stem and path.stem != "protocol")


def golden(name: str) -> dict[str, Any]:
    return read_golden(GOLDEN_DIR / f"{name}.json")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_outputs_are_the_references(name: str) -> None:
    found = match_golden(golden(name), load_encoders())
    assert found is not None
    check = check_encoder(*found, golden(name))
    assert check.verdict == "ok"
    assert check.deviation is not None
    assert check.deviation <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["unet", "s12_moco", "s12_mae_sar", "vit", "dofa_optical", "remoteclip", "spectralgpt"]
)
def test_parameters_are_counted_alike(name: str) -> None:
    reference = golden(name)
    found = match_golden(reference, load_encoders())
    assert found is not None
    encoder, variant = found
    bands = {m: tuple(spec["bands"]) for m, spec in reference["input"].items()}
    size = None if encoder.input_size == "tile" else encoder.input_size
    model = family_class(encoder.family, encoder.name).build(
        bands, size, {**encoder.settings, **encoder.variants[variant].settings}
    )
    assert sum(p.numel() for p in model.parameters()) == reference["parameters"]


def test_all_golden_files_belong_to_a_configured_encoder() -> None:
    known = load_encoders()
    matched = [(g["encoder"], match_golden(g, known)) for g in encoder_goldens(GOLDEN_DIR)]
    assert len(matched) == 25
    assert [name for name, found in matched if found is None] == []
    assert all(found and is_built(found[0].family) for _, found in matched)
    assert len({found[0].name for _, found in matched if found}) == 16


def test_a_deviation_is_found() -> None:
    reference = golden("unet")
    reference["outputs"][2]["samples"][5][1] += 1e-3 * reference["outputs"][2]["std"]
    check = check_encoder(load_encoder("unet"), "own", reference)
    assert check.deviation == pytest.approx(1e-3, rel=1e-3)
    assert not check.passed


def test_wrong_shapes_are_infinitely_far() -> None:
    reference = golden("unet")
    assert deviation([torch.zeros(1)], reference) == float("inf")
    outputs = [torch.zeros(o["shape"]) for o in reference["outputs"]]
    assert deviation([*outputs[:-1], torch.zeros(2, 64, 96, 95)], reference) == float("inf")


def test_no_block_behind_the_last_tap_is_built() -> None:
    encoder = load_encoder("s12_moco")
    full = family_class("timm_vit", "x").build({"optical": ("B4", "B3", "B2")}, 64, dict(encoder.settings)).eval()
    short = family_class("timm_vit", "x").build(
        {"optical": ("B4", "B3", "B2")}, 64, {**encoder.settings, "taps": (3, 5)}
    )
    assert len(short.vit.blocks) == 6  # type: ignore[attr-defined]
    state = {k: v for k, v in full.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(state)
    image = {"optical": torch.randn(1, 3, 64, 64)}
    with torch.no_grad():
        for ours, theirs in zip(short.eval()(image), full(image)[:2], strict=True):  # type: ignore[arg-type]
            assert torch.equal(ours, theirs)


def test_the_same_files_serve_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "unet.json").write_text(json.dumps(golden("unet")))
    assert [g["encoder"] for g in encoder_goldens(tmp_path)] == ["unet"]
    with pytest.raises(ConfigError, match="is not a folder"):
        encoder_goldens(tmp_path / "no")


def test_golden_inputs_are_seeded() -> None:
    first, second = golden_inputs(golden("unet")), golden_inputs(golden("unet"))
    assert torch.equal(first["optical"], second["optical"])
