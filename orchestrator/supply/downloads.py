"""Published data sets: their files downloaded, resumed and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.dataset_spec import DatasetSpec, DownloadSpec
from cryobench.conf.errors import FetchError
from cryobench.orchestrator.supply.digest_record import DigestRecord
from cryobench.orchestrator.supply.fetch import download, fetch_json

#: Zenodo's description of a record: its files with sizes and MD5.
ZENODO = "https://zenodo.org/api/records/{}"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PublishedFile:
    """One file to download."""

    name: str
    url: str
    md5: str | None
    sha256: str | None


def published_files(spec: DatasetSpec) -> list[PublishedFile]:
    """The files of a data set.

    Raises:
        FetchError: it has none with an address, or a record cannot be read.
    """
    return [file for one in spec.downloads for file in _files(one)]


def fetch_dataset(
    spec: DatasetSpec,
    folder: Path,
    cache_dir: Path,
    started: Callable[[str], Progress] = lambda name: lambda d, t: None,
) -> list[Path]:
    """Download a data set's files into ``folder``; those that are there are only verified.

    Args:
        spec: the data set.
        folder: where the files go.
        cache_dir: remembers digests.
        started: is told each file's name and gives what is told its bytes, done and in total.

    Raises:
        FetchError: no address, no network, another file than published or recorded; says what to do by hand.
        DiskFullError: no space left; what came is kept.
    """
    by_hand = (
        f"By hand: download '{spec.name}' (published: {spec.source or '?'}), put its archives into {folder}, then run: "
        f"cryobench data prepare {spec.name}"
    )
    if not spec.downloads:
        raise FetchError(f"No address to download '{spec.name}' from is configured. {by_hand}")
    record = DigestRecord(folder, cache_dir)
    paths = []
    try:
        for file in published_files(spec):
            path = folder / file.name
            if not path.is_file():
                download(file.url, path, started(file.name))
                if file.md5 and _md5(path) != file.md5:
                    damaged = path.replace(path.with_name(path.name + ".damaged"))
                    raise FetchError(
                        f"{file.url} came with MD5 {_md5(damaged)}, published is {file.md5}. It is kept as {damaged}; "
                        "run the command again to download it anew."
                    )
            record.verified(file.name, file.sha256, FetchError)
            paths.append(path)
    except FetchError as error:
        raise FetchError(f"{error} {by_hand}") from error
    return paths


def _files(one: DownloadSpec) -> Iterator[PublishedFile]:
    if one.url:
        yield PublishedFile(one.file or one.url.rpartition("/")[2].partition("?")[0], one.url, one.md5, one.sha256)
        return
    address = ZENODO.format(one.zenodo)
    found = fetch_json(address)
    try:
        for entry in found["files"]:
            kind, _, digest = str(entry["checksum"]).partition(":")
            name = str(entry["key"])
            if "/" in name or "\\" in name or name.startswith("."):
                raise FetchError(f"{address} names a file {name!r}, which is no plain name.")
            yield PublishedFile(name, str(entry["links"]["self"]), digest if kind == "md5" else None, None)
    except (KeyError, TypeError) as error:
        raise FetchError(f"{address} answered without a list of files ({error}). Has the address changed?") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
