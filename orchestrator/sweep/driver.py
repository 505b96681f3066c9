"""The Ray Tune driver: runs an explicit list of trials, each a resumable function of its folder."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cryobench.conf.errors import ConfigError, OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.capacity import device_for_trial, gpus_for_trial, live_nodes, require_fit
from cryobench.orchestrator.sweep.crash import record_crash
from cryobench.orchestrator.sweep.expected_cost import CostBook
from cryobench.orchestrator.sweep.former_names import rename_former_trials
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.plan import Plan, PlannedTrial
from cryobench.orchestrator.sweep.preemption import leaving_on_sigterm
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.schedule import in_order
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

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    mirror = Mirror(where.storage_url) if where.storage_url else None
    renamed = rename_former_trials(where.storage, [t.spec for t in plan.trials if not t.provisional], mirror)
    for former, present in renamed.items():
        say(f"Trial {former} is called {present} since its name holds the published statistics; the old name finds it.")
    record = record_sweep(where.storage, plan.sweep, plan.trial_ids)
    if mirror:
        mirror.push_projections(where.storage)
    observer = SweepObserver.of(plan, where.storage, uri)

    def warn(text: str) -> None:
        say(f"Warning: {text}")
        observer.warn(text)

    reconciler = BackgroundReconciler(where.storage, record, uri, warn, mirror=mirror)
    todo = in_order(plan.to_run(retry_failed), CostBook(where).relative_seconds)
    reconciler.note(record.trials)
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
                run = _Run(todo, where, plan.sweep.resources, address, progress, reconciler, mirror, observer)
                interrupted = run.to_its_end()
    finally:
        observer.driver_ends(progress.counts, interrupted)
        tracked = reconciler.close(progress.finished())
    counts = {name: count for name, count in progress.counts.items() if count}
    return SweepOutcome(counts, interrupted, tracked)


@dataclass
class _Run:
    """The trials of a sweep under Ray Tune, taken up again where a node ran out of memory."""

    todo: list[PlannedTrial]
    where: Places
    resources: ResourceSpec
    address: str | None
    progress: SweepProgress
    reconciler: BackgroundReconciler
    mirror: Mirror | None
    observer: SweepObserver

    def to_its_end(self) -> bool:
        """Whether the user interrupted.

        Raises:
            OutOfMemoryError: nodes ran out of memory more often than is retried.
        """
        concurrent, retries_left = self.resources.max_concurrent, self.resources.crash_retries
        while True:
            with _ray(self.address) as own_ray:
                try:
                    self._fit(concurrent)
                except KeyboardInterrupt:
                    return True
                except RuntimeError as error:
                    # Tune gives up where Ray ends a worker to save the node from running out of memory.
                    if _LOW_MEMORY not in str(error):
                        raise
                    running = len(self.progress.running())
                    if not (own_ray and retries_left):
                        raise _out_of_memory(running) from error
                else:
                    left = [trial for trial in self.progress.specs if trial not in self.progress.finished()]
                    return bool(left)
            concurrent = max(1, running - 1)
            self.progress.tell_low_memory(concurrent)
            self.observer.forget_running(f"A node ran out of memory; going on, {concurrent} at a time.")
            retries_left -= 1

    def _fit(self, concurrent: int | None) -> None:
        """Run what has not ended through one Tuner."""
        import ray

        from cryobench.orchestrator.sweep.trainable import Leave

        leave = ray.remote(num_cpus=0)(Leave).remote()
        with tempfile.TemporaryDirectory(prefix="cryobench-tune-") as scratch:
            tuner = self._tuner(scratch, leave, concurrent)
            with leaving_on_sigterm(lambda: leave.say.remote(), self.progress.running):
                tuner.fit()

    def _tuner(self, scratch: str, leave: Any, concurrent: int | None) -> Any:
        import ray
        from ray import tune

        from cryobench.orchestrator.sweep.trainable import trainable
        from cryobench.orchestrator.sweep.watcher import Watcher

        nodes, cpus = live_nodes(ray.nodes()), self.resources.cpus_per_trial
        gpus = gpus_for_trial(self.resources.gpus_per_trial, nodes)
        require_fit(nodes, cpus, gpus)
        specs = {t.spec.trial_id: t.spec for t in self.todo if not self.progress.ended(t.spec.trial_id)}
        plain = {trial: spec.model_dump(mode="json") for trial, spec in specs.items()}
        place = self.where.for_trials(self.resources, device_for_trial(gpus))

        def crashed(trial: str, message: str) -> str:
            return record_crash(self.where.storage, specs[trial], message, self.mirror)

        return tune.Tuner(
            tune.with_resources(trainable(place, plain, leave), {"cpu": cpus, "gpu": gpus}),
            param_space={"trial": tune.grid_search(list(plain))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=concurrent,
                trial_name_creator=lambda trial: str(trial.config["trial"]),
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=self.resources.crash_retries),
                callbacks=[Watcher(self.progress, self.reconciler, crashed, self.observer)],
                verbose=0,
            ),
        )


@contextmanager
def _ray(address: str | None) -> Iterator[bool]:
    """Ray, of this process or the cluster at ``address``; yields whether it was started here and will end here."""
    for variable, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(variable, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the watcher tells of trials that failed, in a line
    if ray.is_initialized():
        yield False
        return
    _connect(ray, address)
    try:
        yield True
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        # Through a Ray client Tune runs on the cluster's head, out of reach of what writes the leaderboard here.
        raise ConfigError(
            f"--address {address}: Ray Client addresses cannot run sweeps. Give HOST:6379 (the port of ray start "
            "--head) on a machine of the cluster, or start this command there with: ray job submit -- cryobench sweep …"
        )
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
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _out_of_memory(running: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"A node ran out of memory, the last time with {running} trials at a time. Lower resources.max_concurrent or "
        "use larger nodes, then run the same command again: finished trials are kept, the others continue."
    )
