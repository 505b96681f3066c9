"""A store behind a relay."""

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from relay import Relay


@pytest.fixture
def remote(s3: str, tmp_path: Path) -> str:
    """The URL of an empty storage on a local S3 server."""
    base, _, query = s3.partition("?")
    return f"{base}/{tmp_path.name}?{query}"


@pytest.fixture
def relay(s3: str) -> Iterator[Relay]:
    """A relay before that server."""
    made = Relay(parse_qs(urlsplit(s3).query)["endpoint_override"][0])
    yield made
    made.close()


@pytest.fixture
def relayed(s3: str, relay: Relay, tmp_path: Path) -> str:
    """The same storage's URL through the relay."""
    base, _, _ = s3.partition("?")
    return f"{base}/{tmp_path.name}?scheme=http&region=us-east-1&endpoint_override={relay.address}"
