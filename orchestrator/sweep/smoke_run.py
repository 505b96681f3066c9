"""One step of every distinct system and data set of a plan, on the cluster, before a night is spent on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryobench.conf.errors import CryobenchError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.capacity import device_for_trial, gpus_for_trial, live_nodes, require_fit
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial
from cryobench.workers.place import Place


@dataclass(frozen=True)
class SmokeReport:
    """How one pair of system and data set did; ``found`` is a `SmokeResult` in plain form, None where it failed."""

    trial_id: str
    encoder: str
    dataset: str
    regime: str
    ok: bool
    node: str
    kind: str | None
    message: str | None
    found: dict[str, Any] | None


def representatives(trials: Sequence[PlannedTrial]) -> list[TrialSpec]:
    """Of each system (encoder and variant) and data set the trial that needs most memory: one that trains all."""
    chosen: dict[tuple[str, str, str], TrialSpec] = {}
    for trial in trials:
        spec = trial.spec
        key = (spec.dataset.name, spec.encoder.name, spec.encoder.variant)
        if trial.provisional:
            continue
        if key not in chosen or _weight(spec) > _weight(chosen[key]):
            chosen[key] = spec
    return list(chosen.values())


def run_smoke(
    specs: Sequence[TrialSpec],
    where: Places,
    resources: ResourceSpec,
    tell: Callable[[SmokeReport], None] = lambda report: None,
) -> list[SmokeReport]:
    """Run `smoke_test` of each of ``specs`` on the Ray that this process is connected to, as many at once as fit.

    Nothing is written into the storage.

    Args:
        specs: the trials.
        where: folders, on a cluster the same on every node.
        resources: what each gets; batch and crop are the trial's own.
        tell: called with each report as it comes.

    Raises:
        ConfigError: no node could hold a trial.
    """
    import ray

    nodes = live_nodes(ray.nodes())
    gpus = gpus_for_trial(resources.gpus_per_trial, nodes)
    require_fit(nodes, resources.cpus_per_trial, gpus)
    place = where.for_trials(resources, device_for_trial(gpus))
    # A process each: what one left behind, on the device or in libraries, must not be the next one's memory.
    task = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=gpus, max_retries=0, max_calls=1)(_smoke)
    running = {task.remote(spec.model_dump(mode="json"), place): spec for spec in specs}
    reports = []
    while running:
        (done, *_), _rest = ray.wait(list(running), num_returns=1)
        report = _report(running.pop(done), done)
        reports.append(report)
        tell(report)
    order = {spec.trial_id: number for number, spec in enumerate(specs)}
    return sorted(reports, key=lambda report: order[report.trial_id])


def _weight(spec: TrialSpec) -> tuple[bool, bool]:
    return spec.trains_encoder, spec.regime.lora is not None


def _report(spec: TrialSpec, done: Any) -> SmokeReport:
    import ray

    node, kind, message, found = "", None, None, None
    try:
        answer = ray.get(done)
        node, kind, message, found = answer["node"], answer["kind"], answer["message"], answer["found"]
    except ray.exceptions.RayError as error:  # the process is gone, and cannot say why itself
        kind, text = "crashed", " ".join(str(error).split())
        low = "running low on memory" in text
        message = "The node ran low on memory and Ray ended the process." if low else f"The process died: {text[:300]}"
    return SmokeReport(
        trial_id=spec.trial_id,
        encoder=spec.encoder.name,
        dataset=spec.dataset.name,
        regime=spec.regime.name,
        ok=found is not None,
        node=node,
        kind=kind,
        message=message,
        found=found,
    )


def _smoke(plain: dict[str, Any], place: Place) -> dict[str, Any]:
    """In a process of a node: the result, or what went wrong, in plain form."""
    import platform

    from cryobench.workers.training.memory import is_out_of_memory
    from cryobench.workers.training.smoke import smoke_test

    answer: dict[str, Any] = {"node": platform.node(), "kind": None, "message": None, "found": None}
    with tempfile.TemporaryDirectory(prefix="cryobench-smoke-") as scratch:
        try:
            apart = replace(place, storage=Path(scratch), mirror=None)
            answer["found"] = smoke_test(TrialSpec.model_validate(plain), apart, Path(scratch)).plain()
        except CryobenchError as error:
            answer |= {"kind": error.kind, "message": str(error)}
        except Exception as error:
            kind = "out_of_memory" if is_out_of_memory(error) else "crashed"
            answer |= {"kind": kind, "message": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return answer
