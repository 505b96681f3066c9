"""A trial and its name.

A trial is a pure function of its `TrialSpec`, the tile store and the weights. Its id is the first 16 hex digits
of the SHA-256 of the canonical JSON of everything in the spec that can change a result (`cryobench.conf.identity`);
paths, descriptions and the names of data set and regime are marked `Label` and stay out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cryobench.conf.dataset_spec import Statistics
from cryobench.conf.identity import Label, identity_digest
from cryobench.conf.schema import CheckpointLayout, LoraSpec, ProtocolSpec, RegimeSpec
from cryobench.conf.strict import Strict
from cryobench.conf.terms import Group, Modality, Setting


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

    The name is no part of the identity: two names for the same tiles and classes ask for the same computation, which
    is done once and stands under the name that was asked for first.

    ``subset`` is the digest of the training tiles' numbers where a regime uses part of them. ``published`` holds the
    values by which inputs are normalised where ``statistics`` says so: the store's digest does not cover them.
    ``origin`` says where the data came from, so that a trial without result is not taken for one on real data.
    """

    name: Annotated[str, Label]
    store_digest: str
    subset: str | None = None
    statistics: Literal["training", "published"]
    published: dict[str, Statistics] | None = None
    origin: Annotated[str | None, Label] = None


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
    """One trial, completely.

    ``view`` is the sweep's, or ``either`` where both feed the same: such a trial belongs to both. What is fed is in the
    encoder's feed, so the name stays out of the identity.
    """

    encoder: TrialEncoder
    dataset: TrialDataset
    regime: TrialRegime
    lr: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    protocol: ProtocolSpec
    view: Annotated[Literal["reference", "actual", "either"] | None, Label] = None

    @property
    def trial_id(self) -> str:
        """The trial's name: 16 hex digits."""
        return identity_digest(self)[:16]

    @property
    def rivals_id(self) -> str:
        """A name that trials share which differ in the learning rate alone."""
        return self.model_copy(update={"lr": 1.0}).trial_id

    @property
    def former_ids(self) -> tuple[str, ...]:
        """Names that earlier releases gave this trial, newest first.

        Until release 0.1 the values of published statistics were not in the name.
        """
        if self.dataset.published is None:
            return ()
        unnamed = self.dataset.model_copy(update={"published": None})
        return (self.model_copy(update={"dataset": unnamed}).trial_id,)

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
