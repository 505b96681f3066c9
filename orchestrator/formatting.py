"""Small things that several commands print alike."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def percent(value: float | None) -> str:
    """A metric in percent with two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def masked(uri: str) -> str:
    """An address without its password, for people."""
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", uri)
