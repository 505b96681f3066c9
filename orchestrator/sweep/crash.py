"""What is written of a trial whose worker could not write it itself: it died without a word, or never began."""

from __future__ import annotations

from pathlib import Path

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import Failed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror


def record_failure(storage: Path, spec: TrialSpec, kind: str, message: str, mirror: Mirror | None = None) -> str:
    """Record that a trial is not tried again, unless its worker could say more itself; what is known then.

    The worker may have died before there was a folder: it is made here.
    """
    if mirror:
        mirror.pull_trial(storage, spec.trial_id, whole=False)
    folder = TrialFolder(storage, spec.trial_id)
    state = folder.state()
    if state.status != "failed":
        folder.write_spec(spec)
        folder.record(Failed(kind=kind, message=message))
        if mirror:
            mirror.push_trial(storage, spec.trial_id)
    return state.message or message
