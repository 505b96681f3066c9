"""The failed trials of a sweep, as its end shows them: grouped by kind and message, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryobench.orchestrator.sweep.failure_policy import treatment
from cryobench.workers.record.folder import TrialFolder

#: What differs between messages of one cause: ids, addresses, counts, and the times of a crash.
_PARTICULAR = re.compile(r"\b[0-9a-f]{8,}\b|\b0x[0-9a-f]+\b|\d+(\.\d+)?")
_SHOWN = 6


@dataclass(frozen=True)
class FailureGroup:
    """Trials that failed alike; ``message`` is that of the first. ``waits_for_user``: `--retry-failed` is needed."""

    kind: str
    message: str
    trials: tuple[str, ...]
    waits_for_user: bool

    def lines(self) -> list[str]:
        """For people: kind and message, the trials, what to do."""
        rule, count = treatment(self.kind), len(self.trials)
        named = ", ".join(self.trials[:_SHOWN]) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")
        return [
            f"{count} trial{'s' if count > 1 else ''} failed ({self.kind}: {rule.means}): {self.message}",
            f"  {named}",
            f"  {rule.remedy}",
        ]


def failure_groups(storage: Path, trials: Iterable[str]) -> list[FailureGroup]:
    """The trials among ``trials`` that stand as failed, alike ones together, the largest group first."""
    found: dict[tuple[str, str], list[str]] = {}
    messages: dict[tuple[str, str], str] = {}
    waiting: dict[tuple[str, str], bool] = {}
    for trial in trials:
        state = TrialFolder(storage, trial).state()
        if state.status != "failed":
            continue
        kind, message = state.kind or "error", state.message or "without a message"
        key = (kind, _PARTICULAR.sub("#", message))
        found.setdefault(key, []).append(trial)
        messages.setdefault(key, message)
        waiting[key] = state.waits_for_user
    groups = [FailureGroup(key[0], messages[key], tuple(ids), waiting[key]) for key, ids in found.items()]
    return sorted(groups, key=lambda group: -len(group.trials))
