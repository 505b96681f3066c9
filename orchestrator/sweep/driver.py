"""The Ray Tune driver: runs an explicit list of trials, each a resumable function of its folder."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cryobench.conf.errors import ConfigError, OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.projection import LiveProjection
from cryobench.orchestrator.sweep.plan import Plan, PlannedTrial
from cryobench.orchestrator.sweep.preemption import leaving_on_sigterm
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.record.mirror import Mirror

#: What Ray says when it ends a worker because its node runs out of memory.
_LOW_MEMORY = "running low on memory"


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended: trials by status among those run now, and whether all was projected."""

    counts: dict[str, int]
    interrupted: bool
    tracked: bool


def run_sweep(
    plan: Plan,
    where: Places,
    console: Console,
    *,
    uri: str | None,
    address: str | None = None,
    retry_failed: bool = False,
) -> SweepOutcome:
    """Run what is left of ``plan``, two or more at a time as resources allow, and project it as it comes.

    Args:
        plan: all trials; those that are complete are only projected.
        where: folders, on a cluster the same on every node.
        console: for the live table.
        uri: MLflow's tracking URI; None for no tracking.
        address: a Ray cluster; None starts Ray on this machine.
        retry_failed: run deterministic failures again.

    Raises:
        TrackingError: MLflow cannot be reached at the start; nothing has run.
    """
    record = record_sweep(where.storage, plan.sweep, plan.trial_ids)
    mirror = Mirror(where.storage_url) if where.storage_url else None
    if mirror:
        mirror.push_projections(where.storage)
    projection = LiveProjection(
        where.storage,
        record,
        uri,
        lambda text: console.print(f"Warning: {text}", markup=False, soft_wrap=True),
        mirror=mirror,
    )
    todo = plan.to_run(retry_failed)
    projection.note(t.spec.trial_id for t in plan.trials if t.state in ("completed", "diverged", "failed"))
    progress = SweepProgress(
        console=console,
        specs={t.spec.trial_id: t.spec for t in todo},
        epochs_done={t.spec.trial_id: t.epoch for t in todo if t.epoch},
        total=len(plan.trials) - len(plan.blocked),
        already=len(plan.trials) - len(plan.blocked) - len(todo),
    )
    interrupted = False
    try:
        if todo:
            with progress:
                interrupted = _tune(todo, where, plan.sweep.resources, address, progress, projection)
    finally:
        tracked = projection.close()
    counts = {name: count for name, count in progress.counts.items() if count}
    return SweepOutcome(counts, interrupted, tracked)


def _tune(
    todo: list[PlannedTrial],
    where: Places,
    resources: ResourceSpec,
    address: str | None,
    progress: SweepProgress,
    projection: LiveProjection,
) -> bool:
    """Whether the user interrupted."""
    for variable, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(variable, value)
    import ray
    from ray import tune

    from cryobench.orchestrator.sweep.trainable import Leave, trainable
    from cryobench.orchestrator.sweep.watcher import Watcher

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the watcher tells of trials that failed, in a line
    own_cluster = not ray.is_initialized()
    concurrent = resources.max_concurrent
    specs = {t.spec.trial_id: t.spec.model_dump(mode="json") for t in todo}
    retries_left = resources.crash_retries
    while True:
        if own_cluster:
            _connect(ray, address)
        try:
            gpus = resources.gpus_per_trial
            if gpus == "auto":
                gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
            _check_fits(ray.cluster_resources(), resources.cpus_per_trial, gpus)
            left = {trial: spec for trial, spec in specs.items() if not progress.ended(trial)}
            place, leave = where.for_trials(resources), ray.remote(num_cpus=0)(Leave).remote()
            with tempfile.TemporaryDirectory(prefix="cryobench-tune-") as scratch:
                tuner = tune.Tuner(
                    tune.with_resources(trainable(place, left, leave), {"cpu": resources.cpus_per_trial, "gpu": gpus}),
                    param_space={"trial": tune.grid_search(list(left))},
                    tune_config=tune.TuneConfig(
                        reuse_actors=True,
                        max_concurrent_trials=concurrent,
                        trial_name_creator=lambda trial: str(trial.config["trial"]),
                        trial_dirname_creator=lambda trial: str(trial.config["trial"]),
                    ),
                    run_config=tune.RunConfig(
                        name="sweep",
                        storage_path=scratch,
                        failure_config=tune.FailureConfig(max_failures=resources.crash_retries),
                        callbacks=[Watcher(progress, projection)],
                        verbose=0,
                    ),
                )
                try:
                    with leaving_on_sigterm(lambda leave=leave: leave.say.remote(), progress.running):  # type: ignore[misc]
                        tuner.fit()
                except KeyboardInterrupt:
                    return True
                except RuntimeError as error:
                    # Tune gives up where Ray ends a worker to save the node from running out of memory.
                    if _LOW_MEMORY not in str(error):
                        raise
                    if not (own_cluster and retries_left):
                        raise OutOfMemoryError(
                            f"A node ran out of memory, the last time with {len(progress.running())} trials at a time. "
                            "Lower resources.max_concurrent or use larger nodes, then run the same command again: "
                            "finished trials are kept, the others continue."
                        ) from error
                    concurrent = max(1, len(progress.running()) - 1)
                    progress.tell_low_memory(concurrent)
                    retries_left -= 1
                    continue
            return len(progress.specs) > sum(n for name, n in progress.counts.items() if name != "interrupted")
        finally:
            if own_cluster:
                ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Nothing large goes through the object store: tiles are memory-mapped, results are files.
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": 100 * 1024 * 1024}
    else:
        options["address"] = address
    try:
        if address:
            _reachable(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"Ray cluster at {address}" if address else "Ray on this machine"
        raise ConfigError(
            f"Cannot reach {what} ({' '.join(str(error).split())[:200]}). Start one with: ray start --head, and give "
            "--address HOST:6379; without --address the sweep runs on this machine alone."
        ) from error


def _reachable(address: str) -> None:
    """Raise OSError at once where nothing listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_fits(available: dict[str, float], cpus: float, gpus: float) -> None:
    """A trial that no node could ever hold would wait for ever."""
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > available.get(name, 0):
            raise ConfigError(
                f"A trial asks for {wanted:g} {name}, the cluster has {available.get(name, 0):g} in all. Lower "
                f"resources.{name.lower()}s_per_trial."
            )
