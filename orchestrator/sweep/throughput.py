"""How long a trial takes by its multiply-adds, on a device on which nothing like it was recorded. An estimate.

Peaks are the makers' figures for dense matrices, in 10^12 operations a second by precision. Of them the trials of this
program reach a share that differs from model to model; one stands for all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import ConfigError
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.store_info import StoreInfo
from cryobench.workers.record.files import write_json

#: The share of the peak that is reckoned with.
EFFICIENCY = 0.35
CPU = "CPU"


@dataclass(frozen=True)
class Card:
    """A GPU, or one core of a processor: 10^12 operations a second with fp32, TF32 and bf16, and memory in 10^9 bytes,
    that of its smallest version.
    """

    name: str
    fp32: float
    tf32: float
    bf16: float
    memory_gb: float

    def is_device(self, device: str) -> bool:
        """Whether ``device``, as results name it, is one of these."""
        return device.startswith("cpu") if self.name == CPU else self.name in device.upper().replace("-", " ").split()


CARDS = {
    card.name: card
    for card in (
        Card("H200", 67, 494, 989, 141),
        Card("H100", 67, 494, 989, 80),
        Card("A100", 19.5, 156, 312, 40),
        Card("A40", 37.4, 74.8, 149.7, 48),
        Card("L40S", 91.6, 183, 362, 48),
        Card("L4", 30.3, 60, 121, 24),
        Card("V100", 15.7, 15.7, 15.7, 16),
        Card("T4", 8.1, 8.1, 8.1, 16),
        Card(CPU, 0.1, 0.1, 0.1, 0),
    )
}


def card_named(name: str) -> Card:
    """The card of that name.

    Raises:
        ConfigError: none is known by it; the message lists those that are.
    """
    try:
        return CARDS[name.upper()]
    except KeyError:
        raise ConfigError(f"No card '{name}' is known here. Known: {', '.join(CARDS)} (one core).") from None


def seconds_estimated(spec: TrialSpec, tiles: int, info: StoreInfo, gmacs: float, card: Card) -> float:
    """Training and evaluation of a trial, by its multiply-adds.

    A trained model costs three times its forward pass, a frozen encoder's something less: twice. Decoding, saving and
    waiting for data are not in it.

    Args:
        spec: the trial.
        tiles: that it trains on in all its epochs.
        info: its data set's store.
        gmacs: 10^9 multiply-adds of the forward pass for one crop.
        card: what it runs on.
    """
    protocol = spec.protocol
    train = info.splits["train"]
    height, width = _window(spec, info)
    windows = -(-train.height // height) * -(-train.width // width)
    evaluations = -(-protocol.epochs // protocol.eval_every)
    evaluated = windows * (info.splits["val"].tiles * evaluations + info.splits["test"].tiles)
    forwards = tiles * (3 if spec.trains_encoder else 2) + evaluated
    peak = {"fp32": card.fp32, "tf32": card.tf32, "bf16": card.bf16}[protocol.precision]
    return forwards * 2e9 * gmacs / (peak * 1e12 * EFFICIENCY)


class MultiplyAdds:
    """Multiply-adds of models, each counted once and remembered in a file of the node cache.

    Args:
        cache_dir: where that file lies; it may be deleted.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / "multiply-adds.json"
        try:
            self._known: dict[str, float] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def of(self, spec: TrialSpec, info: StoreInfo) -> float | None:
        """10^9 multiply-adds for one crop; None where they cannot be counted."""
        model, window = spec.encoder.model_dump(mode="json", exclude={"weights", "title", "name"}), _window(spec, info)
        asked = [model, spec.regime.model_dump(mode="json", exclude={"name"}), spec.protocol.decoder_channels]
        text = json.dumps([*asked, len(info.classes), window], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        if key not in self._known:
            from cryobench.workers.model.cost import multiply_adds

            try:
                self._known[key] = multiply_adds(spec, len(info.classes), window)
            except Exception:  # a library that is missing, a model that has no shapes without data: no estimate
                return None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
        return self._known[key]


def _window(spec: TrialSpec, info: StoreInfo) -> tuple[int, int]:
    from cryobench.datasets.batches.batch_loader import crop_size  # with torch, which a plan alone has no use for

    train = info.splits["train"]
    return crop_size((train.height, train.width), spec.encoder.input_size)
