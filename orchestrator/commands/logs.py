"""logs: what happened to a trial, as lines."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryobench.orchestrator.commands.options import Storage
from cryobench.orchestrator.commands.output import console

if TYPE_CHECKING:
    from cryobench.orchestrator.places import Places

#: How often --follow looks: at a folder that is seen directly, and at an object store.
_EVERY_S, _EVERY_AWAY_S = 1.0, 15.0
_NEAR = 5


def logs(
    trial: Annotated[str, typer.Argument(help="A trial id of this storage, or how it begins.", metavar="TRIAL")],
    storage: Storage = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as lines come, until the trial ends.")] = False,
    full: Annotated[bool, typer.Option("--all", help="Also samples of the load, and traces of failures.")] = False,
) -> None:
    """Show what happened to a trial: its own events and what the sweep's driver noted of it."""
    from cryobench.orchestrator.places import places

    where = places(storage)
    where.bring_sweeps()
    trial_id = find_trial(where.storage, trial, _names(where))
    shown: set[str] = set()
    try:
        while True:
            where.bring_trials([trial_id])
            for key, text in _lines(where.storage, trial_id, full):
                if key not in shown:
                    shown.add(key)
                    console.print(text, markup=False, highlight=False, soft_wrap=True)
            if not follow or _has_ended(where.storage, trial_id):
                return
            time.sleep(_EVERY_AWAY_S if where.storage_url else _EVERY_S)
    except KeyboardInterrupt:
        return


def find_trial(storage: Path, asked: str, known: list[str]) -> str:
    """The trial that ``asked`` names in full or by its beginning, alone among the ``known`` ones of ``storage``.

    Raises:
        ConfigError: none or several; the message names them, or those that come near.
    """
    from cryobench.conf.errors import ConfigError
    from cryobench.workers.record.folder import TrialFolder

    found = [name for name in known if name.startswith(asked)] if asked else known
    if asked in known or len(found) == 1:
        return TrialFolder.find(storage, asked if asked in known else found[0]).trial_id
    if found:
        more = f" and {len(found) - _NEAR} more" if len(found) > _NEAR else ""
        raise ConfigError(
            f"'{asked}' begins {len(found)} trial ids: {', '.join(found[:_NEAR])}{more}. Give more of it."
        )
    near = difflib.get_close_matches(asked, known, n=_NEAR, cutoff=0.3)
    nearest = f" Near: {', '.join(near)}." if near else ""
    raise ConfigError(
        f"No trial '{asked}' was begun on storage {storage} ({len(known)} were).{nearest} cryobench plan and status "
        "show trial ids."
    )


def _names(where: Places) -> list[str]:
    """The ids of all trials of a storage."""
    from cryobench.workers.record.mirror import Mirror

    if where.storage_url:
        return sorted(Mirror(where.storage_url).trials())
    folder = where.storage / "trials"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _lines(storage: Path, trial: str, full: bool) -> Iterator[tuple[str, str]]:
    """Each line that is to be shown, by time, with a key that stays the same when it is read again."""
    from cryobench.orchestrator.sweep.event_text import at, event_text, log_text
    from cryobench.orchestrator.sweep.sweep_log import lines_about
    from cryobench.workers.record.events import Failed, SystemLoad
    from cryobench.workers.record.folder import TrialFolder

    entries: list[tuple[float, str, str]] = []
    for number, event in enumerate(TrialFolder(storage, trial).events()):
        if full or not isinstance(event, SystemLoad):
            trace = event.trace if full and isinstance(event, Failed) else ""
            entries.append((event.time, f"event {number}", event_text(event) + (f"\n{trace}" if trace else "")))
    for number, line in enumerate(lines_about(storage, trial)):
        if full or _says_more(line):
            entries.append((_time(line), f"log {number} {line.get('event')} {_time(line)}", log_text(line)))
    for moment, key, text in sorted(entries, key=lambda entry: entry[0]):
        yield key, f"{at(moment)}  {text}"


def _says_more(line: dict[str, Any]) -> bool:
    """Whether the driver noted what the trial's own events do not say."""
    return line.get("event") in ("retried", "ended") and line.get("status") != "completed"


def _time(line: dict[str, Any]) -> float:
    value = line.get("time")
    return float(value) if isinstance(value, int | float) else 0.0


def _has_ended(storage: Path, trial: str) -> bool:
    from cryobench.workers.record.folder import TrialFolder

    state = TrialFolder(storage, trial).state()
    return state.finished or state.waits_for_user or state.status == "pruned"
