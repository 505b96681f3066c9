"""Trials that an earlier release named otherwise are brought under the name that they have now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.files import write_json
from cryobench.workers.record.folder import MOVED, MOVED_FORMAT, SPEC, SPEC_FORMAT, TrialFolder
from cryobench.workers.record.lease import LEASE, leased
from cryobench.workers.record.lease_files import FolderLeaseFile
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.record.stamps import leave_stamps


def rename_former_trials(storage: Path, specs: Iterable[TrialSpec], mirror: Mirror | None = None) -> dict[str, str]:
    """Give the folders of ``specs`` that stand under a former name their present one; former name -> present one.

    The former name stays as a folder that holds nothing but the way to the new one, so that it still finds the trial.
    Killed at any moment and run again, it ends the same.
    """
    renamed = {}
    for spec in specs:
        for former in spec.former_ids:
            if _rename(storage, former, spec, mirror):
                renamed[former] = spec.trial_id
    return renamed


def _rename(storage: Path, former: str, spec: TrialSpec, mirror: Mirror | None) -> bool:
    old, new = TrialFolder(storage, former), TrialFolder(storage, spec.trial_id)
    link = old.path.with_name(f".{former}.moved")
    if not (old.path / SPEC).exists():
        if link.exists() and new.path.exists():  # killed between the two renames below
            link.rename(old.path)
        return False
    if new.path.exists():
        return False
    # Not in the folder itself, which goes away under this name.
    file = mirror.trial_lease(former) if mirror else FolderLeaseFile(old.path.with_name(f".{former}.{LEASE}"))
    with leased(file, f"Trial {former}"):
        if mirror:
            mirror.pull_trial(storage, former, whole=True)
        if not (old.path / SPEC).exists() or new.path.exists():  # another driver was here first
            return False
        link.mkdir(exist_ok=True)
        write_json(link / MOVED, {"format": MOVED_FORMAT, "trial_id": spec.trial_id})
        write_json(old.path / SPEC, {"format": SPEC_FORMAT, **spec.model_dump(mode="json")})
        leave_stamps(old.path, link)  # they speak of the store's files under the former name
        old.path.rename(new.path)
        link.rename(old.path)
        if mirror:
            mirror.push_trial(storage, spec.trial_id)
            mirror.push_trial(storage, former)
    return True
