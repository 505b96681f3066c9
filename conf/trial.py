"""A trial and its name.

A trial is a pure function of its `TrialSpec`, the tile store and the weights. Its id is the first 16 hex digits
of the SHA-256 of the canonical JSON of everything in the spec that can change a result; paths, descriptions and the
names of data set and regime are marked `Label` and stay out.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from cryobench.conf.schema import CheckpointLayout, LoraSpec, ProtocolSpec, RegimeSpec
from cryobench.conf.strict import Strict
from cryobench.conf.terms import Group, Modality, Setting

_LABEL = "label"
#: A field that cannot change a result and so is no part of a trial's identity.
Label = Field(json_schema_extra={_LABEL: True})


class Source(Strict):
    """Where one input channel of an encoder comes from: a channel of a stored input group."""

    group: Group
    index: int


class Feed(Strict):
    """Per modality, the source of each of the encoder's input channels; None is filled with zero."""

    inputs: dict[Modality, tuple[Source | None, ...]]


class TrialWeights(Strict):
    """Where an encoder's weights come from. ``random`` is a foundation model without its training."""

    kind: Literal["published", "random", "scratch"]
    digest: str | None = None
    layout: CheckpointLayout | None = None
    file: Annotated[str | None, Label] = None

    @property
    def provenance(self) -> str:
        """What the leaderboard says: the digest of the file, or how the weights came about."""
        return f"sha256:{self.digest}" if self.digest else self.kind


class TrialEncoder(Strict):
    """An encoder as one trial uses it: variant chosen, bands resolved.

    The name is part of the identity: with random weights several encoders are the same network, and each is to have
    its own row.
    """

    name: str
    title: Annotated[str, Label]
    family: str
    variant: str
    settings: dict[str, Setting]
    input_size: int | Literal["tile"]
    decoder: Literal["upernet", "unet"]
    baseline: bool
    bands: dict[Modality, tuple[str, ...]]
    feed: Feed
    weights: TrialWeights


class TrialDataset(Strict):
    """A tile store as one trial uses it; the digest stands for its whole content.

    ``subset`` is the digest of the training tiles' numbers where a regime uses part of them.
    """

    name: Annotated[str, Label]
    store_digest: str
    subset: str | None = None
    statistics: Literal["training", "published"]


class TrialRegime(Strict):
    """The regime as one trial uses it."""

    name: Annotated[str, Label]
    train_encoder: bool
    label_fraction: float
    decoder: Literal["own", "linear"] = "own"
    layer_decay: float | None = None
    lora: LoraSpec | None = None

    @classmethod
    def of(cls, regime: RegimeSpec) -> TrialRegime:
        """The regime of a configuration file."""
        return cls(**regime.model_dump())


class TrialSpec(Strict):
    """One trial, completely."""

    encoder: TrialEncoder
    dataset: TrialDataset
    regime: TrialRegime
    lr: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    protocol: ProtocolSpec

    @property
    def trial_id(self) -> str:
        """The trial's name: 16 hex digits."""
        return hashlib.sha256(canonical_json(identity(self)).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short description for people."""
        return f"{self.encoder.name} · {self.dataset.name} · {self.regime.name} · lr {self.lr:g} · seed {self.seed}"

    @property
    def decoder(self) -> Literal["upernet", "unet", "linear"]:
        """The decoder: the encoder's own, or the regime's."""
        return "linear" if self.regime.decoder == "linear" else self.encoder.decoder

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder's parameters train: asked for by the regime, or a baseline from scratch."""
        return self.regime.train_encoder or self.encoder.baseline


def identity(model: BaseModel) -> dict[str, Any]:
    """The part of ``model`` that can change a result, as plain JSON data."""
    plain: dict[str, Any] = {}
    dumped = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get(_LABEL):
            continue
        value = getattr(model, name)
        plain[name] = identity(value) if isinstance(value, BaseModel) else dumped[name]
    return plain


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; floats in Python's shortest exact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
