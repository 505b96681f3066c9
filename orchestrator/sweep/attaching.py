"""One driver a sweep: a second one shows how the first gets on, and goes on in its place when it is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import Plan, make_plan, refreshed
from cryobench.workers.record.folder import RESULT, TrialFolder
from cryobench.workers.record.lease import HeldLease, Lease, read_lease, take_lease
from cryobench.workers.record.lease_files import FolderLeaseFile, LeaseFile
from cryobench.workers.record.mirror import Mirror

_LOOK_EVERY_S = 10.0


def take_sweep(
    plan: Plan, where: Places, mirror: Mirror | None, say: Callable[[str], None], *, wait: bool = True
) -> tuple[HeldLease, Plan]:
    """The lease of the sweep's driver, and the plan as its trials stand then.

    Args:
        plan: the sweep.
        where: its storage.
        mirror: the object store that the storage is a copy of.
        say: shows the user a line.
        wait: whether to wait for another driver as long as it lives.

    Raises:
        HeldElsewhereError: another process drives it and ``wait`` is false; names that process.
        StorageError, DiskFullError: the storage cannot be written.
    """
    where.prepare_storage()
    name, length = plan.sweep.name, plan.sweep.resources.lease_s
    file: LeaseFile = mirror.driver_lease(name) if mirror else FolderLeaseFile(_lease_path(where.storage, name))
    spectator = _Spectator(plan, where, mirror, say)
    held = take_lease(
        file,
        f"Sweep {name}",
        length_s=length,
        patience_s=None if wait else 0.0,
        should_stop=spectator.look,
        waiting=spectator.begin,
        on_lost=lambda: _leave(name, say),
    )
    if file.unconditional is not None:
        say(f"Warning: two drivers at once cannot be excluded on this storage: {file.unconditional}.")
    return held, spectator.plan_now()


def _lease_path(storage: Path, sweep: str) -> Path:
    path = storage / "sweeps" / "drivers" / f"{sweep}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _leave(name: str, say: Callable[[str], None]) -> None:
    """Leave as when the machine is taken away, where that is heard; else as by Ctrl-C."""
    say(f"Another driver has taken over sweep {name} while this one was paused or cut off; leaving it to that one.")
    heard = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    os.kill(os.getpid(), signal.SIGTERM if heard else signal.SIGINT)


class _Spectator:
    """Shows a sweep that another process drives."""

    def __init__(self, plan: Plan, where: Places, mirror: Mirror | None, say: Callable[[str], None]) -> None:
        self._plan, self._where, self._mirror, self._say = plan, where, mirror, say
        self._attached = False
        self._looked = 0.0
        self._shown = ""
        self._left = set(plan.trial_ids)

    def begin(self, lease: Lease | None) -> None:
        """Say who drives it."""
        self._attached = True
        self._say(
            f"Sweep {self._plan.sweep.name} is driven by {lease}. Attached: this command shows how it gets on and goes "
            "on in its place when it is gone. Ctrl-C leaves it alone; --no-wait refuses instead."
        )

    def look(self) -> bool:
        """Show what changed, now and then; never asks to stop."""
        if self._attached and time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._left -= self._finished()
            total = len(self._plan.trial_ids)
            text = f"{total - len(self._left)} of {total} trials complete"
            if self._mirror is None:
                text += f", {sum(self._runs(trial) for trial in self._left)} running"
            if text != self._shown:
                self._shown = text
                self._say(f"Sweep {self._plan.sweep.name}: {text}")
        return False

    def plan_now(self) -> Plan:
        """The plan, with what became of its trials while another drove."""
        if self._attached:
            self._say(f"Sweep {self._plan.sweep.name}: the other driver is gone; going on here.")
        if self._plan.sweep.search == "optuna":  # whoever drove it since the plan was made may have suggested rates
            return make_plan(self._plan.sweep, self._where)
        if not self._attached:
            return self._plan
        return refreshed(self._plan, self._where)

    def _finished(self) -> set[str]:
        if self._mirror is not None:
            return self._left & self._mirror.finished()
        return {trial for trial in self._left if (self._folder(trial) / RESULT).exists()}

    def _runs(self, trial: str) -> bool:
        lease = read_lease(self._folder(trial))
        return lease is not None and lease.expires > time.time()

    def _folder(self, trial: str) -> Path:
        return TrialFolder(self._where.storage, trial).path
