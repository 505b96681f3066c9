"""The typed schema of everything that can be asked for, as frozen pydantic models.

`EncoderSpec`, `RegimeSpec`, `ProtocolSpec`, `ResourceSpec` mirror the YAML groups of the same names (data sets:
`cryobench.conf.dataset_spec`); `SweepSpec` is a whole request. What a single trial is, and its name, lives in
`cryobench.conf.trial`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.strict import Fraction, Strict
from cryobench.conf.terms import Modality, Setting, Variant

#: The longest time that anything here is waited for: thirty days.
MONTH_S = 30 * 86_400.0
Seconds = Annotated[float, Field(ge=0.01, le=MONTH_S)]
Rate = Annotated[float, Field(gt=0)]

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
    absent: dict[str, Literal["zero", "keep"]] = Field(default={})
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
    settings: dict[str, Setting] = Field(default={})
    reference_settings: dict[str, Setting] = Field(
        default={}, description="settings of the reference where it errs; see protocol.reference_errors"
    )
    weights: WeightsSpec | None = None


class EncoderSpec(Strict):
    """One of the systems under comparison."""

    name: str
    title: str
    family: str
    input_size: Annotated[int, Field(gt=0)] | Literal["tile"]
    decoder: Literal["upernet", "unet"] = "upernet"
    baseline: bool = False
    settings: dict[str, Setting] = Field(default={})
    variants: Annotated[dict[Variant, VariantSpec], Field(min_length=1)]


# --- regime, protocol, resources -------------------------------------------------------------------------


class LoraSpec(Strict):
    """Low-rank adapters (Hu et al. 2021) on the linear layers of attention and MLP: their rank and scale."""

    rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0


class RegimeSpec(Strict):
    """Which parameters train, and on how much of the training split. Baselines always train fully.

    ``decoder``: ``own`` is the encoder's (UPerNet, or U-Net's), ``linear`` one linear layer on the last feature map.
    ``layer_decay`` lowers the learning rate by this factor a block from the decoder down. ``lora`` trains adapters in
    an encoder that is frozen otherwise.
    """

    name: str
    train_encoder: bool
    label_fraction: Fraction = 1.0
    decoder: Literal["own", "linear"] = "own"
    layer_decay: Fraction | None = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RegimeSpec:
        if self.lora and self.train_encoder:
            raise ValueError("lora adapts a frozen encoder: set train_encoder: false")
        if self.layer_decay and not self.train_encoder:
            raise ValueError("layer_decay needs an encoder that trains: set train_encoder: true")
        return self


#: What the reference does otherwise where results would differ; docs/protocol.md explains each.
ReferenceBehaviour = Literal[
    "frozen_in_train_mode", "float32_confusion", "swapped_precision_and_recall", "encoder_settings"
]


class ProtocolSpec(Strict):
    """Every value of training and evaluation that can change a result (BENCHMARK.md's are the defaults).

    ``precision``: ``fp32`` as published (convolutions may use TF32, as torch does by default), ``tf32`` for matrix
    products too, ``bf16`` by autocast. ``deterministic``: algorithms that always round alike on a GPU, or an error.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 80
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 8
    crops_per_tile: Annotated[int, Field(ge=1, le=10_000)] = 1
    eval_every: Annotated[int, Field(ge=1, le=100_000)] = 5
    eval_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.05
    lr_milestones: tuple[Fraction, ...] = (0.6, 0.9)
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    decoder_channels: Annotated[int, Field(ge=4, le=65_536)] = 512
    decoder_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    few_shot_bins: Annotated[int, Field(ge=1, le=10_000)] = 3
    bootstrap_samples: Annotated[int, Field(ge=100, le=1_000_000)] = 1000
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    reference_errors: tuple[ReferenceBehaviour, ...] = ()
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="threads of a trial on the CPU; part of the identity because sums round with it"
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"expected two numbers from 0 up to but not 1, got {list(value)}")
        return value

    @field_validator("lr_milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value):
            raise ValueError(f"milestones must ascend, got {list(value)}")
        return value


class ResourceSpec(Strict):
    """What a trial gets on its node. Nothing here can change a result."""

    cpus_per_trial: Annotated[float, Field(gt=0, le=4096)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    max_concurrent: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    crash_retries: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    loader_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    prefetch_batches: Annotated[int, Field(ge=1, le=10_000)] = 8
    checkpoint_every_s: Annotated[float, Field(gt=0, le=MONTH_S)] = 600.0
    stall_timeout_s: Seconds = 600.0
    lease_s: Seconds = 60.0
    storage_patience_s: Annotated[float, Field(ge=0, le=MONTH_S)] = 600.0
    cache_limit_gb: Annotated[float, Field(gt=0, le=1e9)] = 200.0
    cache_dir: str | None = None


# --- sweeps ----------------------------------------------------------------------------------------------


class LrSearchSpec(Strict):
    """Further learning rates on part of a sweep's grid; what the grid does not hold is not searched.

    With ``search=optuna`` the rates of ``lr`` are not run themselves: ``samples`` rates a cell (encoder, data set,
    regime) are suggested between the least and the greatest of them, on a logarithmic scale.
    """

    lr: Annotated[tuple[Rate, ...], Field(min_length=1, max_length=1000)]
    regimes: Annotated[tuple[str, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    samples: Annotated[int, Field(ge=1)] = 8


class SweepSpec(Strict):
    """Encoders x data sets x regimes x learning rates x seeds, plus an optional learning-rate search.

    ``search`` says where the rates of ``lr_search`` come from, ``scheduler`` which of Ray Tune's stops trials early.
    ``for_table``: its trials make the published tables, so every one is trained to its end.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    encoders: Annotated[tuple[EncoderSpec, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    regimes: Annotated[tuple[RegimeSpec, ...], Field(min_length=1)]
    lr: Annotated[tuple[Rate, ...], Field(min_length=1, max_length=1000)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1, max_length=1000)] = (234,)
    lr_search: LrSearchSpec | None = None
    search: Literal["grid", "optuna"] = "grid"
    scheduler: Literal["none", "asha", "median"] = "none"
    for_table: bool = False
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

    @model_validator(mode="after")
    def _searchable(self) -> SweepSpec:
        asked = [f"{name}={value}" for name, value, usual in self._early_ends() if value != usual]
        if self.for_table and asked:
            raise ValueError(
                f"found {' and '.join(asked)} in a sweep whose trials make the published tables; expected "
                "scheduler=none and search=grid, with which every trial is trained to its end. Leave them out, or "
                "search in a sweep of your own: a file in CONFIG_DIR/sweep without for_table, under another name"
            )
        if self.search != "optuna":
            return self
        if self.lr_search is None:
            raise ValueError(
                "search=optuna needs the range of rates; found lr_search=null, expected e.g. "
                "lr_search={regimes: [finetune], lr: [1e-5, 1e-3], samples: 8}"
            )
        if len(set(self.lr_search.lr)) < 2:
            raise ValueError(
                f"search=optuna suggests rates between the least and the greatest of lr_search.lr; found "
                f"{list(self.lr_search.lr)}, expected at least two different rates such as [1e-5, 1e-3]"
            )
        if len(self.seeds) != 1:
            raise ValueError(
                f"search=optuna compares rates by one seed; found seeds={list(self.seeds)}, expected exactly one. Give "
                "the best rates more seeds in a sweep of its own"
            )
        return self

    def _early_ends(self) -> tuple[tuple[str, str, str], ...]:
        return ("scheduler", self.scheduler, "none"), ("search", self.search, "grid")
