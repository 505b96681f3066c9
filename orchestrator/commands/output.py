"""Printing for the commands: console, progress bars, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Wide enough for every table where there is no terminal to fit into. What is printed is no markup unless a call says
#: so: names, titles and messages come from files.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False)


def console_of_its_own() -> Console:
    """The same, bound to what standard output is now: it stays there while others' output is led elsewhere."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False)


def print_json(value: Any) -> None:
    """Plain JSON on standard output, for other programs."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


@contextmanager
def byte_bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress bars of bytes, one below the other; yields what begins one and gives what is told done and total."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def begin(what: str) -> Callable[[int, int], None]:
            task = progress.add_task(what, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield begin


@contextmanager
def bar(what: str, *, size: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, of things or of bytes; yields a function that is told done and total."""
    counted = DownloadColumn() if size else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), counted, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
