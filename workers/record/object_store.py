"""Objects of a store by name: listed, read, written, written on condition, removed.

S3, Google's and Azure's stores are reached through obstore, which has what a lease needs: writing only if nothing
stands there, or only over a known state. What else pyarrow's filesystems read (hdfs://, file://) is reached through
them, without conditions. The URL is spelt as for pyarrow in both cases.
"""

from __future__ import annotations

import configparser
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cryobench.conf.errors import ConfigError, StorageError
from cryobench.datasets.store.location import open_filesystem

T = TypeVar("T")

#: Files beyond this many bytes are sent and fetched in parts, never held in memory.
_LARGE = 8 * 1024 * 1024
#: How long others have to write over what was written without condition.
_SETTLING_S = 0.5


@dataclass(frozen=True)
class Stored:
    """What a store says of an object. ``tag`` differs when the content does; ``version`` where the store counts."""

    size: int
    tag: str
    version: str | None = None


class ObjectStore(Protocol):
    """A store at a URL; names are relative to it. Every method raises StorageError if the store cannot be used."""

    url: str
    #: Why nothing can be written on condition here; None where it can.
    unconditional: str | None

    def files(self, below: str = "") -> dict[str, Stored]:
        """All objects below a folder by name, hidden ones left out."""

    def folders(self, below: str) -> set[str]:
        """The names of the folders in a folder."""

    def read(self, name: str) -> tuple[bytes, Stored]:
        """An object's content; raises FileNotFoundError where there is none."""

    def fetch(self, name: str, target: Path) -> Stored:
        """An object into a file; raises FileNotFoundError where there is none."""

    def write(self, name: str, content: bytes | Path) -> Stored:
        """An object of this content, or of a file's."""

    def write_if(self, name: str, content: bytes, known: Stored | None) -> Stored | None:
        """Write over exactly the state ``known`` (None: where nothing is); None where another state is there."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""


def open_store(url: str) -> ObjectStore:
    """The store at a URL.

    Raises:
        ConfigError: a URL that names no store.
    """
    from cryobench.workers.record.plain_store import PlainStore

    parts = urlsplit(url)
    build = {"s3": _s3, "gs": _gcs, "gcs": _gcs, "abfs": _azure, "abfss": _azure, "az": _azure}.get(parts.scheme)
    if build is None:
        filesystem, root = open_filesystem(url)
        return PlainStore(without_secrets(url), filesystem, root)
    return ConditionalStore(without_secrets(url), build(parts, dict(parse_qsl(parts.query))))


class ConditionalStore:
    """A store that obstore reaches; the arguments are the URL to be shown and obstore's own object."""

    def __init__(self, url: str, store: Any) -> None:
        self.url, self._store = url, store
        self.unconditional: str | None = None

    def files(self, below: str = "") -> dict[str, Stored]:
        """All objects below a folder."""
        import obstore

        found = self._there(lambda: obstore.list(self._store, below or None, chunk_size=1000).collect())
        return {meta["path"]: _stored(meta) for meta in found if not meta["path"].rpartition("/")[2].startswith(".")}

    def folders(self, below: str) -> set[str]:
        """The names of the folders in a folder."""
        import obstore

        found = self._there(lambda: obstore.list_with_delimiter(self._store, below))
        return {prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]}

    def read(self, name: str) -> tuple[bytes, Stored]:
        """An object's content."""
        import obstore

        def get() -> tuple[bytes, Stored]:
            found = obstore.get(self._store, name)
            return bytes(found.bytes()), _stored(found.meta)

        return self._try(get)

    def fetch(self, name: str, target: Path) -> Stored:
        """An object into a file."""
        import obstore

        def get() -> Stored:
            found = obstore.get(self._store, name)
            with target.open("wb") as file:
                for part in found.stream(min_chunk_size=_LARGE):
                    file.write(part)
            return _stored(found.meta)

        return self._try(get)

    def write(self, name: str, content: bytes | Path) -> Stored:
        """An object of this content, or of a file's."""
        import obstore

        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if isinstance(content, Path) and size < _LARGE:
            content = content.read_bytes()
        put = self._there(lambda: obstore.put(self._store, name, content, chunk_size=_LARGE))
        return Stored(size, put["e_tag"] or "", put["version"])

    def write_if(self, name: str, content: bytes, known: Stored | None) -> Stored | None:
        """Write over a known state."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        mode: Any = "create"
        if known is not None:
            mode = {"e_tag": known.tag, **({"version": known.version} if known.version else {})}
        if self.unconditional is None:
            try:
                put = self._try(lambda: obstore.put(self._store, name, content, mode=mode))
            except FileNotFoundError as error:
                if known is None:
                    raise store_trouble(self.url, error) from error
                return None
            except (AlreadyExistsError, PreconditionError):
                # A request whose answer was lost is sent again, and is refused if it had been carried out.
                return self._standing(name, content)
            except (NotSupportedError, NotImplementedError) as error:
                self.unconditional = " ".join(str(error).split())[:120]
            else:
                if known is None:
                    self._see_whether_conditions_hold(name, content)
                if self.unconditional is None:
                    return Stored(len(content), put["e_tag"] or "", put["version"])
                time.sleep(_SETTLING_S)
                return self._standing(name, content)
        return write_unconditionally(self, name, content, known)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects."""
        import obstore

        for name in names:
            try:
                self._try(lambda name=name: obstore.delete(self._store, name))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def _standing(self, name: str, content: bytes) -> Stored | None:
        try:
            found, stored = self.read(name)
        except FileNotFoundError:
            return None
        return stored if found == content else None

    def _see_whether_conditions_hold(self, name: str, content: bytes) -> None:
        """Some stores take a condition and do not look at it: one that was just written is not to be made again."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._try(lambda: obstore.put(self._store, name, content, mode="create"))
        except (AlreadyExistsError, PreconditionError):
            return
        self.unconditional = "it writes over what is there although it was asked not to"

    def _there(self, action: Callable[[], T]) -> T:
        """As `_try`, for what is only missing if the bucket is."""
        try:
            return self._try(action)
        except FileNotFoundError as error:
            raise store_trouble(self.url, error) from error

    def _try(self, action: Callable[[], T]) -> T:
        from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

        try:
            return action()
        except (AlreadyExistsError, PreconditionError, NotSupportedError, FileNotFoundError):
            raise
        except (BaseError, OSError, ValueError) as error:
            raise store_trouble(self.url, error) from error


def write_unconditionally(store: ObjectStore, name: str, content: bytes, known: Stored | None) -> Stored | None:
    """What is left without conditions: look, write, and look again a moment later whether it still stands."""

    def found() -> tuple[bytes, Stored] | None:
        try:
            return store.read(name)
        except FileNotFoundError:
            return None

    before = found()
    if (before[1].tag if before else None) != (known.tag if known else None):
        return None
    store.write(name, content)
    time.sleep(_SETTLING_S)
    after = found()
    return after[1] if after and after[0] == content else None


#: How a store says what is wrong, within an answer that is too long to be shown.
_ANSWER = re.compile(r"<Code>([^<]*)</Code>.*?<Message>([^<]*)</Message>")


def store_trouble(url: str, error: Exception) -> StorageError:
    """What is said of a store that does not answer, or refuses."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    if answer := _ANSWER.search(text):
        text = f"{answer[1]}: {answer[2]}"
    return StorageError(
        f"Storage {url} cannot be used ({text[:300]}). Check the address, your "
        "credentials and the network, then run the same command again: trials continue from what is there."
    )


def without_secrets(url: str) -> str:
    """The URL without keys that stand in it."""
    return re.sub(r"://[^/?#]*:[^/?#]*@", "://", url)


def _stored(meta: Any) -> Stored:
    return Stored(int(meta["size"]), meta["e_tag"] or f"{meta['size']} {meta['last_modified']}", meta.get("version"))


#: Seconds of trying again are few here: who calls decides whether to wait for a store that is away.
_RETRIES: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}


def _endpoint(options: dict[str, str]) -> str | None:
    given = options.get("endpoint_override")
    return given if given is None or "://" in given else f"{options.get('scheme', 'https')}://{given}"


def _client(endpoint: str | None) -> Any:
    return {
        "timeout": timedelta(hours=1),
        "read_timeout": timedelta(seconds=30),
        "connect_timeout": timedelta(seconds=5),
        "allow_http": (endpoint or "").startswith("http://"),
    }


def _s3(parts: SplitResult, options: dict[str, str]) -> Any:
    from obstore.store import S3Store

    _require_known(parts, options, {"scheme", "region", "endpoint_override", *_PYARROW_ALONE})
    config: Any = {}
    endpoint = _endpoint(options) or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    bucket = parts.hostname or ""
    if not region and not endpoint:
        region = _region_of(bucket)
    config["region"] = region or "us-east-1"
    if parts.username and parts.password:
        config |= {"access_key_id": unquote(parts.username), "secret_access_key": unquote(parts.password)}
    elif "AWS_ACCESS_KEY_ID" not in os.environ:
        config |= _profile()
    return S3Store(
        bucket,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options=_client(endpoint),
        retry_config=_RETRIES,
    )


#: Options of pyarrow's S3 URLs that say nothing here.
_PYARROW_ALONE = {"allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"}


def _region_of(bucket: str) -> str:
    import pyarrow as pa
    from pyarrow import fs

    try:
        return str(fs.resolve_s3_region(bucket))
    except (pa.ArrowException, OSError) as error:
        raise store_trouble(f"s3://{bucket}", error) from error


def _profile() -> dict[str, Any]:
    """Keys from the AWS credentials file, which obstore itself does not read; none where there is no such profile."""
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    profile = os.environ.get("AWS_PROFILE", "default")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path)
    except configparser.Error as error:
        raise ConfigError(f"{path} is no AWS credentials file ({error}). Mend it, or set AWS_ACCESS_KEY_ID.") from error
    if not parser.has_section(profile):
        if "AWS_PROFILE" in os.environ:
            raise ConfigError(
                f"AWS_PROFILE={profile}: no such section in {path}. Expected aws_access_key_id and "
                "aws_secret_access_key there; other kinds of profiles: put their keys into the environment first, "
                'e.g. eval "$(aws configure export-credentials --format env)".'
            )
        return {}
    keys = {"access_key_id", "secret_access_key", "session_token"}
    return {key: parser[profile][f"aws_{key}"] for key in keys if f"aws_{key}" in parser[profile]}


def _gcs(parts: SplitResult, options: dict[str, str]) -> Any:
    from obstore.store import GCSStore

    _require_known(parts, options, {"scheme", "endpoint_override", "retry_limit_seconds"})
    config: Any = {}
    endpoint = _endpoint(options)
    if endpoint:
        config["base_url"] = endpoint
    if parts.username == "anonymous":
        config["skip_signature"] = True
    prefix = parts.path.strip("/") or None
    client = _client(endpoint)
    return GCSStore(parts.hostname or "", prefix=prefix, config=config, client_options=client, retry_config=_RETRIES)


def _azure(parts: SplitResult, options: dict[str, str]) -> Any:
    from obstore.store import from_url

    _require_known(parts, options, set())
    return from_url(parts.geturl(), client_options=_client(None), retry_config=_RETRIES)


def _require_known(parts: SplitResult, options: dict[str, str], known: set[str]) -> None:
    unknown = sorted(options.keys() - known)
    if unknown or not parts.hostname:
        raise ConfigError(
            f"{without_secrets(parts.geturl())}: {f'unknown {unknown}' if unknown else 'no bucket'}. Expected a URL "
            f"such as {parts.scheme}://bucket/folder, with no options but {', '.join(sorted(known)) or 'none'}."
        )
