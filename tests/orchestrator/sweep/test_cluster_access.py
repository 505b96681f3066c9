"""Being let into a cluster, or told in one line why not. The cluster is played here; test_cluster.py has a real one."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.sweep import cluster_access
from cryobench.orchestrator.sweep.cluster_access import MODE, TOKEN, TOKEN_PATH, prepare_access


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell that knows of no token."""
    for variable in (MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster_access, "_send_token", lambda: monkeypatch.setenv(MODE, "token"))


@pytest.fixture
def listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def cluster_that_wants(token: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Play a cluster with this token, or with authentication off."""

    def ask(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[bytes]:
        path = Path(env.get(TOKEN_PATH) or tmp_path / ".ray" / "auth_token")
        given = env.get(TOKEN) or (path.read_text() if path.exists() else None)
        sent = given if env[MODE] == "token" else None
        return subprocess.CompletedProcess(command, 0 if token in (None, sent) else 3)

    monkeypatch.setattr(cluster_access.subprocess, "run", ask)


def test_a_cluster_without_authentication_is_used_without(
    listener: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster_that_wants(None, monkeypatch, tmp_path)
    prepare_access(listener)
    assert MODE not in os.environ


def test_the_token_is_found_where_ray_keeps_it(listener: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster_that_wants("secret", monkeypatch, tmp_path)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    prepare_access(listener)
    assert os.environ[MODE] == "token"


def test_a_missing_or_wrong_token_is_one_line_without_the_token(
    listener: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster_that_wants("secret", monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=r"asks for a token; there is none here\. Run ray get-auth-token") as missing:
        prepare_access(listener)
    assert str(tmp_path / ".ray" / "auth_token") in str(missing.value)
    monkeypatch.setenv(TOKEN, "that-of-another")
    with pytest.raises(ConfigError, match=r"refuses the token in \$RAY_AUTH_TOKEN") as wrong:
        prepare_access(listener)
    for told in (missing, wrong):
        assert "\n" not in str(told.value)
        assert "that-of-another" not in str(told.value)


def test_a_mode_that_was_set_is_followed_and_explained(
    listener: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster_that_wants("secret", monkeypatch, tmp_path)
    monkeypatch.setenv(MODE, "disabled")
    with pytest.raises(ConfigError, match="refuses with RAY_AUTH_MODE=disabled"):
        prepare_access(listener)
    monkeypatch.setenv(MODE, "token")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token, but there is no token"):
        prepare_access(listener)


def test_what_is_no_cluster_is_said_at_once(monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    with pytest.raises(ConfigError, match=r"expected HOST:PORT"):
        prepare_access("somewhere")
    with pytest.raises(ConfigError, match=r"Cannot reach a Ray cluster at 127\.0\.0\.1:1 \("):
        prepare_access("127.0.0.1:1")
    monkeypatch.setattr(cluster_access, "_PATIENCE_S", 2.0)  # of which importing takes one
    with pytest.raises(ConfigError, match="does not answer as a Ray cluster does"):
        prepare_access(listener)


def test_a_ray_of_ones_own_leaves_no_token_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "")
    prepare_access(None)
    assert len(os.environ[TOKEN]) == 64
    assert not (tmp_path / ".ray").exists()
