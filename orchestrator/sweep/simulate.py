"""How long a sweep would take on given nodes: its trials handed out in order to whatever is free first."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.strict import Strict
from cryobench.conf.yaml_files import MAX_BYTES
from cryobench.orchestrator.sweep.throughput import CPU, card_named

#: Measured: the first trial of a worker waits for its process and imports, each further one for being handed out.
START_S, HAND_OUT_S = 6.0, 0.05
T = TypeVar("T")
#: More places than any cluster has, and few enough to go through.
_MOST_PLACES = 1_000_000
_WRITTEN = re.compile(r"(?:(\d{1,9})x)?(\d{1,9})x([A-Za-z][A-Za-z0-9]{0,63})")


class NodeKind(Strict):
    """``count`` nodes alike: GPUs of one ``card``, or with the card ``CPU`` cores alone."""

    card: str
    gpus: int = Field(default=0, ge=0, le=1024)
    cpus: int | None = Field(default=None, ge=1, le=65_536)
    count: int = Field(default=1, ge=1, le=100_000)

    def at_once(self, resources: ResourceSpec) -> int:
        """How many trials one such node runs at a time."""
        by_cpus = None if self.cpus is None else int(self.cpus / resources.cpus_per_trial)
        if self.card.upper() == CPU or not self.gpus:
            return by_cpus or 0
        asked = 1.0 if resources.gpus_per_trial == "auto" else resources.gpus_per_trial
        by_gpus = (
            self.gpus // int(asked)
            if asked >= 1
            else self.gpus * int(min(1 / asked, _MOST_PLACES))
            if asked > 0
            else by_cpus or 0
        )
        return by_gpus if by_cpus is None else min(by_gpus, by_cpus)


@dataclass(frozen=True)
class Simulation:
    """What came out: seconds of wall time, the share of it in which places were in use, hours of all trials together
    (of GPU or CPU, as they ask for) and of the whole nodes from beginning to end, trials at a time, the longest trial.
    """

    wall_s: float
    utilisation: float
    trial_hours: float
    node_hours: float
    at_once: int
    trials: int
    longest_s: float

    def as_json(self) -> dict[str, Any]:
        """The plain form for ``--json``."""
        return asdict(self)


def read_nodes(text: str) -> list[NodeKind]:
    """Nodes from ``8xH100``, ``2x8xH100`` (two of eight), several of these with commas, or a YAML or JSON file.

    A file holds a list of ``{card: H100, gpus: 8, cpus: 96, count: 2}``.

    Raises:
        ConfigError: none of these, or a card that is not known.
    """
    path = Path(text)
    nodes = (
        _from_file(path) if path.suffix in (".yaml", ".yml", ".json") else [_written(one) for one in text.split(",")]
    )
    for node in nodes:
        card_named(node.card)
    return nodes


def simulate(
    trials: Sequence[T],
    nodes: Sequence[NodeKind],
    resources: ResourceSpec,
    seconds: Callable[[T, str], float],
    *,
    start_s: float = START_S,
    hand_out_s: float = HAND_OUT_S,
) -> Simulation:
    """Hand ``trials`` out in order; each place takes the next one when it is free.

    Args:
        trials: in the order in which they run.
        nodes: what they run on.
        resources: what a trial gets; ``max_concurrent`` holds over all nodes.
        seconds: a trial's duration on a card.
        start_s: what the first trial of a place waits for.
        hand_out_s: what every trial waits for.

    Raises:
        ConfigError: no trial fits on any node.
    """
    count = sum(node.count * node.at_once(resources) for node in nodes)
    if count > _MOST_PLACES:
        raise ConfigError(f"These nodes run {count:,} trials at once; expected at most {_MOST_PLACES:,}. Give fewer.")
    places = [node.card for node in nodes for _ in range(node.count * node.at_once(resources))]
    if not places:
        raise ConfigError(
            f"No trial fits on these nodes: one asks for {resources.cpus_per_trial:g} CPU and "
            f"{resources.gpus_per_trial} GPU. Give nodes with more, or lower resources.gpus_per_trial."
        )
    places = places[: resources.max_concurrent or len(places)]
    free = [(0.0, number) for number in range(len(places))]
    used, busy, longest = set[int](), 0.0, 0.0
    for trial in trials:
        at, number = heapq.heappop(free)
        takes = seconds(trial, places[number])
        waits = hand_out_s + (0.0 if number in used else start_s)
        used.add(number)
        busy, longest = busy + takes, max(longest, takes)
        heapq.heappush(free, (at + waits + takes, number))
    wall = max(at for at, _ in free)
    asked = 1.0 if resources.gpus_per_trial == "auto" else resources.gpus_per_trial
    on_gpus = any(node.gpus for node in nodes) and asked > 0
    units = sum(node.count * (node.gpus if on_gpus else node.cpus or 0) for node in nodes)
    return Simulation(
        wall_s=wall,
        utilisation=busy / (wall * len(places)) if wall else 0.0,
        trial_hours=busy * (asked if on_gpus else resources.cpus_per_trial) / 3600,
        node_hours=wall * units / 3600,
        at_once=len(places),
        trials=len(trials),
        longest_s=longest,
    )


def _written(text: str) -> NodeKind:
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"'{text[:100]}' names no nodes. Expected 8xH100 (one node of eight), 2x8xH100 (two of them), 16xCPU "
            "(cores), several with commas, or a .yaml or .json file with a list of {card, gpus, cpus, count}."
        )
    count, units, card = int(found[1] or 1), int(found[2]), found[3].upper()
    has = {"cpus": units} if card == CPU else {"gpus": units}
    try:
        return NodeKind.model_validate({"card": card, "count": count, **has})
    except ValidationError as error:
        raise ConfigError(f"'{text}' names no nodes: {error.errors()[0]['msg']}.") from error


def _from_file(path: Path) -> list[NodeKind]:
    expected = "Expected a list of nodes, each {card: H100, gpus: 8, cpus: 96, count: 2}."
    try:
        if path.stat().st_size > MAX_BYTES or not path.is_file():
            raise ConfigError(f"{path} is no file of at most {MAX_BYTES:,} bytes. {expected}")
        text = path.read_text()
        plain = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"No file {path}. {expected}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}). {expected}") from error
    if not isinstance(plain, list) or not plain:
        raise ConfigError(f"{path} holds {type(plain).__name__}. {expected}")
    try:
        return [NodeKind.model_validate(one) for one in plain]
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{path}: {where}: {problem['msg']}. {expected}") from error
