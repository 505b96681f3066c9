"""What of a model is part of a trial's name.

An id outlives releases. The fields that the first format had are written whatever their value; a field that came later
is written only where it does not stand at its default, so that a new option renames nothing that was run before. A
default of such a later field must never change: give it a new name instead, or raise `FORMAT`, which enters the id from
2 on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, Field

#: Raised only by a change that must rename every trial.
FORMAT = 1

_LABEL = "label"
#: Where a frozen model keeps its own canonical JSON; no field, as with a cached property.
_KEPT = "_identity_json"
#: A field that cannot change a result and so is no part of a trial's identity.
Label = Field(json_schema_extra={_LABEL: True})

#: The fields of the first format, by model. Nothing is ever added or removed here.
_FIRST: dict[str, frozenset[str]] = {
    model: frozenset(names.split())
    for model, names in {
        "TrialSpec": "encoder dataset regime lr seed protocol",
        "TrialEncoder": "name family variant settings input_size decoder baseline bands feed weights",
        "TrialDataset": "store_digest subset statistics",
        "TrialRegime": "train_encoder label_fraction decoder layer_decay lora",
        "TrialWeights": "kind digest layout",
        "CheckpointLayout": "key nested prefix unused absent allow",
        "LoraSpec": "rank alpha",
        "Feed": "inputs",
        "Source": "group index",
        "ProtocolSpec": "epochs batch_size crops_per_tile eval_every eval_batch_size betas weight_decay lr_milestones "
        "lr_gamma decoder_channels decoder_dropout few_shot_bins bootstrap_samples precision channels_last compile "
        "deterministic reference_errors cpu_threads",
    }.items()
}


def identity(model: BaseModel) -> dict[str, Any]:
    """The part of ``model`` that can change a result, as plain JSON data."""
    return {name: _plain(value) for name, value in _fields(model)}


def _fields(model: BaseModel) -> Iterator[tuple[str, Any]]:
    """Names and values of what can change a result."""
    first = _FIRST.get(_model_name(model), frozenset())
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get(_LABEL):
            continue
        value = getattr(model, name)
        if name not in first and value == field.get_default(call_default_factory=True):
            continue
        yield name, value


def identity_digest(model: BaseModel) -> str:
    """SHA-256 of the canonical JSON of ``model``'s identity, in hex."""
    more = {"format": FORMAT} if FORMAT > 1 else {}
    return hashlib.sha256(_identity_json(model, more).encode()).hexdigest()


def _identity_json(model: BaseModel, more: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The canonical JSON of ``model``'s identity and of ``more``.

    Thousands of trials share encoder, protocol and regime, so the text of a model is kept with it. It counts as long as
    the model's values are the very same objects: a copy with another value takes the kept text along.
    """
    values = tuple(getattr(model, name) for name in type(model).model_fields)
    kept = model.__dict__.get(_KEPT)
    if kept is not None and not more and all(a is b for a, b in zip(kept[0], values, strict=True)):
        return str(kept[1])
    parts = {name: canonical_json(value) for name, value in more.items()}
    for name, value in _fields(model):
        parts[name] = _identity_json(value) if isinstance(value, BaseModel) else canonical_json(_plain(value))
    text = "{" + ",".join(f"{json.dumps(name)}:{parts[name]}" for name in sorted(parts)) + "}"
    if not more and model.model_config.get("frozen"):
        model.__dict__[_KEPT] = (values, text)
    return text


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; floats in Python's shortest exact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _model_name(model: BaseModel) -> str:
    """The name of the class, or of the one it was derived from, that the first format knew."""
    return next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in _FIRST), type(model).__name__)


def _plain(value: Any) -> Any:
    """``value`` as JSON data, with the models in it by their identity."""
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
