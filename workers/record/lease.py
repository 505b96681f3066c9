"""Who runs a trial, or drives a sweep: a lease for a while, renewed as long as its holder lives.

No two clocks have to agree: whoever waits for a lease watches, by a clock of its own, whether it is renewed, and takes
it over when it was not for the lease's whole length. A holder on the same machine whose process is gone is replaced at
once. A holder that could not renew for most of that length (a long pause, a cut network) writes nothing before it has
renewed, and learns by that whether the lease is still its own.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from cryobench.conf.errors import DiskFullError, HeldElsewhereError, InterruptedTrialError, LeaseLostError, StorageError
from cryobench.workers.record.lease_files import LeaseFile, Written

LEASE, LEASE_FORMAT = "lease.json", 1
#: How long a lease stands without being renewed, in seconds.
LENGTH_S = 60.0
#: Share of its length for which a holder believes in a lease that it cannot renew; others take it over after all of it.
_BELIEVED = 0.8
_LOOKS_A_LENGTH = 12
#: The holders that live in this process.
_held_here: set[str] = set()


@dataclass(frozen=True)
class Lease:
    """Who holds a lease. ``taken`` and ``expires`` are seconds since 1970 by the holder's clock, to be shown only.

    ``machine`` and ``started`` say which process on which machine it is, beyond doubt: the running kernel and its
    namespace of processes, and when in ticks since that kernel's start the process began; empty and None where the
    system does not tell.
    """

    holder: str
    host: str
    pid: int
    taken: float
    expires: float
    renewed: int = 0
    length_s: float = LENGTH_S
    machine: str = ""
    started: int | None = None
    released: bool = False

    @classmethod
    def of_this_process(cls, length_s: float) -> Lease:
        """A new lease, beginning now."""
        pid, now = os.getpid(), time.time()
        return cls(
            secrets.token_hex(16),
            platform.node(),
            pid,
            now,
            now + length_s,
            length_s=length_s,
            machine=_machine(),
            started=_started(pid),
        )

    def content(self) -> bytes:
        """As it stands in its file."""
        return (json.dumps({"format": LEASE_FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.taken))
        return f"{self.host}, process {self.pid}, since {since}"

    @property
    def holder_is_gone(self) -> bool:
        """Whether its process ran on this machine and does no more, or is this one and could not give it back."""
        if not self.machine or self.machine != _machine() or self.started is None:
            return False
        if self.pid == os.getpid() and self.started == _started(self.pid):
            return self.holder not in _held_here
        return _started(self.pid) != self.started


def parse_lease(content: bytes) -> Lease | None:
    """The lease that a file holds; None for one that is damaged or of a later release."""
    try:
        plain: dict[str, Any] = json.loads(content)
        if plain.pop("format") != LEASE_FORMAT:
            return None
        known = {field.name for field in fields(Lease)}
        lease = Lease(**{name: value for name, value in plain.items() if name in known})
        times = (lease.taken, lease.expires, lease.length_s)
        return lease if all(isinstance(t, int | float) for t in times) and lease.length_s > 0 else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_lease(folder: Path) -> Lease | None:
    """Who holds the trial of ``folder`` now, for display; None where nobody does, or nobody can say.

    Whether its ``expires`` is past depends on two clocks: it is a hint, never a reason to run the trial.
    """
    try:
        lease = parse_lease((folder / LEASE).read_bytes())
    except OSError:
        return None
    return None if lease is None or lease.released or lease.holder_is_gone else lease


class HeldLease:
    """A lease that this process holds, renewed by a thread until it is given back.

    Args:
        file: where it stands.
        lease: as it was written.
        tag: of that writing.
        asked: when that writing began, by `_clock`.
        on_lost: called, in that thread, when another process is found to have taken it over.
    """

    def __init__(
        self, file: LeaseFile, lease: Lease, tag: str, asked: float, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._file, self._lease, self._tag, self._renewed = file, lease, tag, asked
        self._on_lost = on_lost
        self._lost: LeaseLostError | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process is known to hold it."""
        return self._lost is not None

    def require(self) -> None:
        """Come back if the lease is this process's own at this moment.

        Raises:
            LeaseLostError: another process has taken it over.
            StorageError: it could not be renewed for long, and cannot be now: nobody knows.
        """
        if self._lost is not None:
            raise self._lost
        if _clock() - self._renewed > _BELIEVED * self._lease.length_s:
            self._renew()

    def give_back(self) -> None:
        """Let others have it at once; without effect where it was lost, or the storage is away."""
        self._over.set()
        self._thread.join()
        _held_here.discard(self._lease.holder)
        with suppress(LeaseLostError, StorageError, DiskFullError):
            self.require()
            self._renew(released=True)
            self._file.hide()

    def _renew(self, released: bool = False) -> None:
        with self._lock:
            if self._lost is not None:
                raise self._lost
            asked, now = _clock(), time.time()
            length = 0.0 if released else self._lease.length_s
            lease = replace(self._lease, renewed=self._lease.renewed + 1, expires=now + length, released=released)
            tag = self._file.write(lease.content(), self._tag)
            if tag is None:
                self._lost = LeaseLostError(
                    f"The lease {self._file} was not renewed for {_clock() - self._renewed:.0f} s (a pause of this "
                    f"process, or no way to the storage), and {_holder(self._file)} took it over. Nothing is written "
                    "by this process any more; running the same command again goes on from what is there."
                )
                raise self._lost
            self._lease, self._tag, self._renewed = lease, tag, asked

    def _keep(self) -> None:
        pause = self._lease.length_s / 3
        while not self._over.wait(pause):
            try:
                self._renew()
                pause = self._lease.length_s / 3
            except LeaseLostError:
                self._on_lost()
                return
            except (StorageError, DiskFullError):  # a moment without storage: sooner again
                pause = self._lease.length_s / 20


@contextmanager
def leased(
    file: LeaseFile,
    what: str,
    *,
    length_s: float = LENGTH_S,
    patience_s: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[Lease | None], None] = lambda lease: None,
) -> Iterator[HeldLease]:
    """Hold a lease; it is given back at the end.

    Args:
        file: where it stands.
        what: what it is of, for messages: "Trial 0123".
        length_s: how long it stands without being renewed.
        patience_s: how long to wait for another's; None: as long as that one is renewed.
        should_stop: asked while waiting.
        waiting: called once a holder, when waiting begins.

    Raises:
        HeldElsewhereError: another process holds it and goes on doing so; names it.
        InterruptedTrialError: ``should_stop`` said so.
        StorageError: the storage cannot be used.
    """
    held = take_lease(file, what, length_s=length_s, patience_s=patience_s, should_stop=should_stop, waiting=waiting)
    try:
        yield held
    finally:
        held.give_back()


def take_lease(
    file: LeaseFile,
    what: str,
    *,
    length_s: float = LENGTH_S,
    patience_s: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[Lease | None], None] = lambda lease: None,
    on_lost: Callable[[], None] = lambda: None,
) -> HeldLease:
    """As `leased`, for who gives it back by hand; ``on_lost`` is that of `HeldLease`."""
    began = time.monotonic()
    seen: Written | None = None
    seen_since, told = began, ""
    while True:
        found = file.read()
        if found != seen:
            seen, seen_since = found, time.monotonic()
        lease = parse_lease(found.content) if found else None
        length = lease.length_s if lease else length_s
        stale = found is not None and time.monotonic() - seen_since >= length
        if found is None or stale or (lease is not None and (lease.released or lease.holder_is_gone)):
            mine, asked = Lease.of_this_process(length_s), _clock()
            _held_here.add(mine.holder)
            try:
                tag = file.write(mine.content(), found.tag if found else None)
            except BaseException:
                _held_here.discard(mine.holder)
                raise
            if tag is not None:
                return HeldLease(file, mine, tag, asked, on_lost)
            _held_here.discard(mine.holder)
            continue
        if patience_s is not None and time.monotonic() - began >= patience_s:
            raise HeldElsewhereError(
                f"{what} is being run by another process ({lease or 'which cannot be read'}; {file}). Wait for it, or "
                "end it and run the same command again: it goes on from what is there."
            )
        if lease is not None and lease.holder != told:
            told = lease.holder
            waiting(lease)
        if should_stop():
            raise InterruptedTrialError(f"Stopped while waiting for {what[:1].lower()}{what[1:]}, held by {lease}.")
        near = lease is not None and lease.machine == _machine()  # then its end shows at once
        left = length if patience_s is None else patience_s - (time.monotonic() - began)
        time.sleep(max(0.01, min(length / _LOOKS_A_LENGTH, 1.0 if near else 5.0, left)))


def _holder(file: LeaseFile) -> str:
    with suppress(StorageError):
        found = file.read()
        lease = parse_lease(found.content) if found else None
        if lease is not None:
            return str(lease)
    return "another process"


def _clock() -> float:
    """Seconds that go on also while the machine sleeps, and never back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a living process of this machine began, in ticks since the kernel's start: no clock moves that."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])
