"""Small things that several commands print alike."""

from __future__ import annotations

import re
from urllib.parse import unquote

#: ``://user:`` and what stands between it and the last ``@``: a password may hold any character, written as it is.
_PASSWORD = re.compile(r"(?<=://)([^/?#:@\s]*):(\S*)@")
_SECRET_PARAMETER = re.compile(r"(?i)([?&;](?:password|passwd|pwd|token|secret|odbc_connect)=)([^&;#\s]+)")


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


def masked(text: str, uri: str = "") -> str:
    """``text`` with the passwords of all URIs in it as ``***``, and those of ``uri`` wherever they stand, decoded too.

    For everything that is shown of a tracking URI, errors of libraries included. It rather hides too much: of an
    address with a port and a later ``@``, the port.
    """
    shown = _SECRET_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
    secrets = {found[2] for pattern in (_PASSWORD, _SECRET_PARAMETER) for found in pattern.finditer(uri)}
    for secret in sorted(secrets | {unquote(one) for one in secrets}, key=len, reverse=True):
        shown = shown.replace(secret, "***") if secret else shown
    return shown
