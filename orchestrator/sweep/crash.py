"""What is written of a trial whose worker died without a word."""

from __future__ import annotations

from pathlib import Path

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import Failed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror


def record_crash(storage: Path, spec: TrialSpec, message: str, mirror: Mirror | None = None) -> str:
    """Record that a trial's workers died too often, unless they could say more themselves; what is known then.

    The worker may have died before there was a folder: it is made here.
    """
    if mirror:
        mirror.pull_trial(storage, spec.trial_id, whole=False)
    folder = TrialFolder(storage, spec.trial_id)
    state = folder.state()
    if state.status != "failed":
        folder.write_spec(spec)
        folder.record(Failed(kind="crashed", message=message))
        if mirror:
            mirror.push_trial(storage, spec.trial_id)
    return state.message or message
