"""Downloads that resume, from the Hugging Face Hub or any web address."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryobench.conf.errors import FetchError, disk_full

_CHUNK = 1 << 20
Progress = Callable[[int, int], None]


def download(url: str, target: Path, progress: Progress = lambda done, total: None) -> None:
    """Download ``url`` to ``target`` by way of ``target.part``, continuing what an earlier attempt left there.

    Raises:
        FetchError: no network, no such address, or a connection that broke; what came is kept for the next attempt.
        DiskFullError: no space left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.status != 206:  # the server does not resume: from the start
                have = 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = have + length
            with part.open("ab" if have else "wb") as file:
                while block := answer.read(_CHUNK):
                    file.write(block)
                    have += len(block)
                    progress(have, total)
        if length and have < total:
            raise FetchError(f"{url}: the connection ended after {have:,} of {total:,} bytes. Run the command again.")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is whole
            part.replace(target)
            return
        raise _refused(url, error) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise FetchError(f"{url} cannot be reached ({error}).") from error
    except OSError as error:
        raise disk_full(error, part) or FetchError(f"{url} could not be saved to {part} ({error}).") from error
    part.replace(target)


def fetch_json(url: str) -> dict[str, Any]:
    """The JSON object at ``url``.

    Raises:
        FetchError: no network, no such address, or something else there.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
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
