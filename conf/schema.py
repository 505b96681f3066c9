"""The typed schema of everything that can be asked for, as frozen pydantic models.

`EncoderSpec`, `DatasetSpec`, `RegimeSpec`, `ProtocolSpec`, `ResourceSpec` mirror the YAML groups of the same
names; `SweepSpec` is a whole request. What a single trial is, and its name, lives in `cryobench.conf.trial`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Modality = Literal["optical", "sar"]
Variant = Literal["own", "optical", "sar", "joint"]
Group = Literal["optical", "sar", "ancillary"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: Value of pixels without a label in every stored mask, whatever the raw files use.
IGNORE = 255

#: Names that are radar polarisations wherever they appear; all other names are optical.
SAR_NAMES = frozenset({"VV", "VH", "HH", "HV"})

#: A setting of an encoder: plain data only, never a class path.
Setting = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

Fraction = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# --- data sets -------------------------------------------------------------------------------------------


class ChannelSpec(Strict):
    """One channel of the raw files: what it is, and under which name the reference feeds it."""

    name: str
    group: Group
    fed_as: str | None = None


class LayoutSpec(Strict):
    """Where the raw files lie: patterns relative to the source folder, alternatives in order of preference."""

    images: tuple[str, ...] = ("{split}/images", "{split}/image", "images/{split}")
    masks: tuple[str, ...] = ("{split}/masks", "{split}/mask", "labels/{split}")
    pairing: Literal["name", "order"] = "name"


class Statistics(Strict):
    """Mean and standard deviation a channel, in the units of the raw files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class DatasetSpec(Strict):
    """A data set: how its files are read and what their channels and labels mean."""

    name: str
    title: str
    reader: str
    channels: Annotated[tuple[ChannelSpec, ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=IGNORE)]
    layout: LayoutSpec = LayoutSpec()
    sensor: str = ""
    source: str = ""
    gsd: float | None = Field(default=None, gt=0, description="ground sampling distance in metres")
    tile: int | None = Field(default=None, gt=0, description="side of a published tile in pixels")
    mask_codes: dict[int, int] | None = Field(default=None, description="raw label value -> class")
    mask_ignore: int | None = Field(default=None, description="raw label value of unlabelled pixels")
    nan_fill: float | None = Field(default=None, description="what replaces NaN; none: NaN is an error")
    published_statistics: Statistics | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        names = [c.name for c in self.channels]
        if len(set(names)) != len(names):
            raise ValueError(f"channel names must be unique, got {names}")
        if self.mask_codes is not None:
            wrong = sorted(v for v in self.mask_codes.values() if not 0 <= v < len(self.classes))
            if wrong:
                raise ValueError(f"mask_codes maps to classes {wrong}; there are {len(self.classes)} (0-based)")
        stats = self.published_statistics
        if stats and (len(stats.mean) != len(names) or len(stats.std) != len(names)):
            raise ValueError(f"published_statistics needs {len(names)} values each, one a channel")
        return self

    @property
    def groups(self) -> dict[Group, tuple[str, ...]]:
        """Channel names by input group, in file order."""
        found: dict[Group, tuple[str, ...]] = {}
        for channel in self.channels:
            found[channel.group] = (*found.get(channel.group, ()), channel.name)
        return found


# --- encoders --------------------------------------------------------------------------------------------


class CheckpointLayout(Strict):
    """How a published file nests the encoder's tensors. Whatever is not named here is an error.

    ``nested``: the file holds a dictionary of state dicts, whose names become the first part of the tensors' names.

    ``unused`` and ``absent`` are shell patterns over the encoder's own tensor names (``unused`` also over the
    file's full names): tensors of the file that the encoder has no place for, and tensors of the encoder that
    the file may lack, with what fills them.
    """

    key: str | None = None
    nested: bool = False
    prefix: str = ""
    unused: tuple[str, ...] = ()
    absent: dict[str, Literal["zero", "keep"]] = {}
    allow: tuple[Literal["argparse.Namespace"], ...] = ()


class WeightsSpec(Strict):
    """A published checkpoint: ``published`` for people, ``hugging_face`` (a repository) or ``url`` for fetching."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    published: str
    licence: str = "not stated"
    hugging_face: str | None = None
    url: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    layout: CheckpointLayout = CheckpointLayout()


class VariantSpec(Strict):
    """What an encoder takes when it is fed one kind of data.

    ``bands`` lists, a modality, the bands in the order of the checkpoint, or says ``dataset``: the data set's
    own channels, for systems that are trained from scratch.
    """

    bands: dict[Modality, tuple[str, ...] | Literal["dataset"]]
    settings: dict[str, Setting] = {}
    weights: WeightsSpec | None = None


class EncoderSpec(Strict):
    """One of the systems under comparison."""

    name: str
    title: str
    family: str
    input_size: Annotated[int, Field(gt=0)] | Literal["tile"]
    decoder: Literal["upernet", "unet"] = "upernet"
    baseline: bool = False
    settings: dict[str, Setting] = {}
    variants: Annotated[dict[Variant, VariantSpec], Field(min_length=1)]


# --- regime, protocol, resources -------------------------------------------------------------------------


class RegimeSpec(Strict):
    """Which parameters train, and on how much of the training split. Baselines always train fully."""

    name: str
    train_encoder: bool
    label_fraction: Fraction = 1.0


class ProtocolSpec(Strict):
    """Every value of training and evaluation that can change a result (BENCHMARK.md's are the defaults)."""

    epochs: Annotated[int, Field(ge=1)] = 80
    batch_size: Annotated[int, Field(ge=2)] = 8
    crops_per_tile: Annotated[int, Field(ge=1)] = 1
    eval_every: Annotated[int, Field(ge=1)] = 5
    eval_batch_size: Annotated[int, Field(ge=1)] = 8
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    lr_milestones: tuple[Fraction, ...] = (0.6, 0.9)
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    decoder_channels: Annotated[int, Field(ge=4)] = 512
    decoder_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    few_shot_bins: Annotated[int, Field(ge=1)] = 3
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    cpu_threads: Annotated[int, Field(ge=1)] = Field(
        default=1, description="threads of a trial on the CPU; part of the identity because sums round with it"
    )

    @field_validator("lr_milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value):
            raise ValueError(f"milestones must ascend, got {list(value)}")
        return value


class ResourceSpec(Strict):
    """What a trial gets on its node. Nothing here can change a result."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    crash_retries: Annotated[int, Field(ge=0)] = 3
    loader_threads: Annotated[int, Field(ge=1)] = 2
    prefetch_batches: Annotated[int, Field(ge=1)] = 4
    cache_limit_gb: Annotated[float, Field(gt=0)] = 200.0


# --- sweeps ----------------------------------------------------------------------------------------------


class LrSearchSpec(Strict):
    """Further learning rates on part of a sweep's grid; what the grid does not hold is not searched."""

    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    regimes: Annotated[tuple[str, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class SweepSpec(Strict):
    """Encoders x data sets x regimes x learning rates x seeds, plus an optional learning-rate search."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    encoders: Annotated[tuple[EncoderSpec, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    regimes: Annotated[tuple[RegimeSpec, ...], Field(min_length=1)]
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (234,)
    lr_search: LrSearchSpec | None = None
    weights: Literal["published", "random"] = "published"
    view: Literal["reference", "actual"] = "reference"
    modality: Literal["auto", "optical", "sar", "joint"] = "auto"
    statistics: Literal["training", "published"] = "training"
    protocol: ProtocolSpec
    resources: ResourceSpec

    @field_validator("lr", "seeds", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)
