"""Downloads that resume, from the Hugging Face Hub or any web address."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import IO, Any

from cryobench.conf.errors import FetchError, disk_full

_CHUNK = 1 << 20
_TIMEOUT_S = 60
Progress = Callable[[int, int], None]


def download(url: str, target: Path, progress: Progress = lambda done, total: None) -> None:
    """Download ``url`` to ``target`` by way of ``target.part``, continuing what an earlier attempt left there.

    Only a part of the very same file is continued: what the server called it (ETag or Last-Modified) is kept beside
    it in ``target.part.json``. Of a file that changed since, or that the server has no such name for, all comes anew.

    Raises:
        FetchError: no network, no such address, or a connection that broke; what came is kept for the next attempt.
        DiskFullError: no space left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(url, target)
    try:
        if not (part.resumable and _fetch_rest(part, progress)):
            _fetch_whole(part, progress)
    except urllib.error.HTTPError as error:
        raise _refused(url, error) from error
    except http.client.IncompleteRead as error:
        raise _broken(url, part.size, None) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise FetchError(f"{url} cannot be reached ({error}).") from error
    except OSError as error:
        raise disk_full(error, part.path) or FetchError(
            f"{url} could not be saved to {part.path} ({error})."
        ) from error
    part.path.replace(target)
    part.memory.unlink(missing_ok=True)


def fetch_json(url: str) -> dict[str, Any]:
    """The JSON object at ``url``.

    Raises:
        FetchError: no network, no such address, or something else there.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_CHUNK * 16))
    except urllib.error.HTTPError as error:
        raise _refused(url, error) from error
    except (OSError, ValueError) as error:
        raise FetchError(f"{url} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise FetchError(f"{url} answered {type(found).__name__}, expected a JSON object.")
    return found


def download_from_hub(repository: str, file: str, target: Path) -> None:
    """Download one file of a Hugging Face repository (the library resumes by itself).

    Raises:
        FetchError: no network, or no such repository or file.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = Path(hf_hub_download(repository, file, local_dir=target.parent))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and (full := disk_full(error, target)):
            raise full from error
        reason = " ".join(str(error).split())[:200]
        raise FetchError(f"{file} of {repository} on the Hugging Face Hub cannot be fetched ({reason}).") from error
    if found != target:
        found.replace(target)


def _refused(url: str, error: urllib.error.HTTPError) -> FetchError:
    return FetchError(f"{url} answered {error.code} {error.reason}. Is the address still right?")


class _Part:
    """What came of a file so far, and what the server called the file it is a part of."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self.memory = target.with_name(target.name + ".part.json")
        try:
            known = json.loads(self.memory.read_text())
            self.validator: str | None = str(known["validator"]) if known["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            self.validator = None

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def resumable(self) -> bool:
        return bool(self.size and self.validator)

    def begin(self, headers: Message) -> None:
        """Empty the part for the file that ``headers`` tell of; at no moment does it stand beside another's name."""
        self.memory.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        self.validator = _validator(headers)
        if self.validator:
            self.memory.write_text(json.dumps({"url": self.url, "validator": self.validator}))

    def append(self, answer: IO[bytes], total: int | None, progress: Progress) -> None:
        """Write what comes; raises FetchError where it ends before ``total`` bytes."""
        have = self.size
        with self.path.open("ab") as file:
            while block := answer.read(_CHUNK):
                file.write(block)
                have += len(block)
                progress(have, total or have)
        if total is not None and have != total:
            raise _broken(self.url, have, total)


def _fetch_whole(part: _Part, progress: Progress) -> None:
    with urllib.request.urlopen(part.url, timeout=_TIMEOUT_S) as answer:
        _receive_whole(part, answer, progress)


def _receive_whole(part: _Part, answer: http.client.HTTPResponse, progress: Progress) -> None:
    length = answer.headers.get("Content-Length")
    part.begin(answer.headers)
    part.append(answer, int(length) if length else None, progress)


def _fetch_rest(part: _Part, progress: Progress) -> bool:
    """Ask for what is missing; False if all must come anew."""
    have = part.size
    headers = {"Range": f"bytes={have}-", "If-Range": str(part.validator)}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(part.url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        # Nothing lies beyond the part. Of the same file, that is all of it; of a shorter one, the part is another's.
        _, _, total = _content_range(error.headers)
        return total == have and _same_file(part, error.headers)
    with answer:
        if answer.status != 206:  # another file by now, or a server that does not resume
            _receive_whole(part, answer, progress)
            return True
        first, last, total = _content_range(answer.headers)
        # Some servers do not know If-Range, and some answer with another range than was asked for.
        if first != have or last is None or not _same_file(part, answer.headers):
            return False
        part.append(answer, total if total is not None else last + 1, progress)
    return True


def _same_file(part: _Part, headers: Message) -> bool:
    """Whether an answer tells of the part's file, as far as it tells."""
    return _validator(headers) in (None, part.validator)


def _validator(headers: Message) -> str | None:
    """A strong ETag, else the time of the last change; a weak ETag promises no equal bytes."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _content_range(headers: Message) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and total of a Content-Range (``bytes 5-9/10``, ``bytes */10``); None for each unknown."""
    found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(?:(\d+)|\*)", headers.get("Content-Range", "").strip())
    first, last, total = (int(text) if text else None for text in (found.groups() if found else (None,) * 3))
    return first, last, total


def _broken(url: str, have: int, total: int | None) -> FetchError:
    of = f" of {total:,}" if total is not None else ""
    return FetchError(f"{url}: the connection ended after {have:,}{of} bytes. Run the command again.")
