"""What users' storages and scripts rely on: it may grow, and only on purpose."""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel

from cryobench.conf.compose import load_sweep
from cryobench.conf.identity import identity
from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.leaderboard import SCHEMA
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.workers.record.result import TrialResult

FROZEN = Path(__file__).parent / "frozen"
#: Twenty requests of one trial each, over systems, data sets, regimes and values of the protocol.
REQUESTS = [
    *(f"encoder={e} dataset=glid regime=frozen" for e in ("croma", "dofa", "gfm_swin", "prithvi", "ramen", "unet")),
    *(f"encoder={e} dataset=gsdd regime=finetune" for e in ("remoteclip", "satlasnet", "scale_mae", "vit")),
    *(f"encoder={e} dataset=sicd regime=few_shot" for e in ("spectralgpt", "s12_dino", "s12_mae", "terramind")),
    "encoder=s12_data2vec dataset=caffe regime=lora lr=1e-3",
    "encoder=s12_moco dataset=gld regime=linear_probe seed=7",
    "encoder=vit dataset=gld regime=finetune_llrd view=actual",
    "encoder=croma dataset=gld regime=frozen modality=joint",
    "encoder=unet dataset=caffe regime=frozen protocol=reference",
    "encoder=unet dataset=glid regime=frozen protocol.precision=bf16 protocol.batch_size=16 lr=3e-5",
]


def spec(request: str) -> TrialSpec:
    """The trial, with data and weights that are not there: their digests stand for themselves."""
    with tempfile.TemporaryDirectory() as nothing:
        folder = Path(nothing)
        where = Places(folder / "storage", folder / "data", folder / "cache", folder / "weights")
        overrides = ["sweep=paper_frozen", "lr_search=null", *request.split()]
        (trial,) = make_plan(load_sweep(overrides), where).trials
        return trial.spec


def frozen(name: str) -> Any:
    return json.loads((FROZEN / name).read_text())


def test_ids_of_twenty_specs() -> None:
    assert len(REQUESTS) == 20
    assert {request: spec(request).trial_id for request in REQUESTS} == frozen("trial_ids.json")


def test_a_new_option_renames_no_trial() -> None:
    class WithMore(ProtocolSpec):
        label_smoothing: float = 0.0

    class Later(TrialSpec):
        protocol: WithMore
        gradient_clip: float | None = None

    before = spec(REQUESTS[0])
    plain = before.model_dump()
    assert Later.model_validate(plain).trial_id == before.trial_id
    plain["protocol"]["label_smoothing"] = 0.1
    assert Later.model_validate(plain).trial_id != before.trial_id
    assert identity(Later.model_validate(plain))["protocol"]["label_smoothing"] == 0.1


def fields(model: type[BaseModel], at: str = "") -> dict[str, str]:
    found = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        inner = next((k for k in (kind, *getattr(kind, "__args__", ())) if _is_model(k)), None)
        found[f"{at}{name}"] = str(kind).replace("typing.", "") if inner is None else f"object {inner.__name__}"
        if inner is not None:
            found |= fields(inner, f"{at}{name}.")
    return found


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@pytest.mark.parametrize(("name", "model"), [("result.json", TrialResult), ("spec.json", TrialSpec)])
def test_names_and_types_of_records(name: str, model: type[BaseModel]) -> None:
    assert fields(model) == frozen(name)


def commands(command: click.Command, name: str) -> dict[str, list[str]]:
    if hasattr(command, "commands"):
        return {
            k: v for sub, one in command.commands.items() for k, v in commands(one, f"{name} {sub}".strip()).items()
        }
    return {name: sorted(" ".join(p.opts) if p.param_type_name == "option" else f"<{p.name}>" for p in command.params)}


def test_commands_and_their_options() -> None:
    assert commands(typer.main.get_command(app), "") == frozen("commands.json")


def test_names_and_types_of_the_leaderboards_columns() -> None:
    assert {field.name: str(field.type) for field in SCHEMA} == frozen("leaderboard.json")
