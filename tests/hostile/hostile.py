"""The command line as a process would run it, without the cost of one; and ways to damage a file."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryobench.orchestrator import cli

#: Longer than any refusal may take, on a busy machine.
LIMIT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit code, all that it printed, and the traceback that escaped, if one did."""

    code: object
    text: str
    escaped: str
    seconds: float

    def is_clear(self) -> bool:
        """Whether it ended well, or with one message for people."""
        quick = self.seconds < LIMIT_S
        return not self.escaped and "Traceback" not in self.text and self.code in (None, 0, 1, 2) and quick


class Terminal:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch

    def run(self, *arguments: str) -> Answer:
        """Run ``cryobench`` with these arguments."""
        self._patch.setattr(sys, "argv", ["cryobench", *arguments])
        self._patch.setattr(logging, "raiseExceptions", False)  # handlers of libraries keep streams of earlier tests
        self._capsys.readouterr()
        code: object = 0
        escaped, began = "", time.monotonic()
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        except BaseException:
            escaped = traceback.format_exc()
        out, err = self._capsys.readouterr()
        return Answer(code, out + err, escaped, time.monotonic() - began)


def to_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


#: What can become of a file that holds JSON, or anything else.
DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "a list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "other types": lambda path: path.write_text('{"format": "x", "status": 7, "trials": 3, "name": {}, "cost": []}'),
    "other fields": lambda path: path.write_text('{"format": 1}\n{"event": "epoch"}\n'),
    "of a later release": lambda path: path.write_text('{"format": 99}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": to_a_folder,
    "a link to nothing": to_a_link_to_nothing,
}
