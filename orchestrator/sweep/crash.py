"""What is written of a trial whose worker could not write it itself: it died without a word, or never began."""

from __future__ import annotations

from pathlib import Path

from cryobench.conf.errors import DiskFullError, HeldElsewhereError, StorageError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import Failed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.lease import leased
from cryobench.workers.record.mirror import Mirror

#: A lease of a worker that died on another node stands longer; the driver does not wait for that.
_PATIENCE_S = 5.0


def record_failure(storage: Path, spec: TrialSpec, kind: str, message: str, mirror: Mirror | None = None) -> str:
    """Record that a trial is not tried again, unless its worker could say more itself; what is known then.

    The worker may have died before there was a folder: it is made here. Where its lease still stands, or the storage is
    away, nothing is written: the trial stays as it was begun, and the next sweep goes on with it.
    """
    folder = TrialFolder(storage, spec.trial_id)
    try:
        file = mirror.trial_lease(spec.trial_id) if mirror else folder.lease_file()
        with leased(file, f"Trial {spec.trial_id}", patience_s=_PATIENCE_S):
            if mirror:
                mirror.pull_trial(storage, spec.trial_id, whole=False)
            state = folder.state()
            if state.status in ("failed", "pruned") or state.finished:
                return state.message or message
            folder.write_spec(spec)
            folder.record(Failed(kind=kind, message=message))
            if mirror:
                mirror.push_trial(storage, spec.trial_id)
    except (HeldElsewhereError, StorageError, DiskFullError) as error:
        return f"{message} It could not be recorded: {error}"
    return message
