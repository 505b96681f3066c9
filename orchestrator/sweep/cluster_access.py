"""Getting at a Ray cluster: whether it is there, and whether it asks for a token.

Ray 2.60 turns token authentication on for every cluster that is started where a token lies (``~/.ray/auth_token``),
but a program that is given an address only sends one if ``RAY_AUTH_MODE`` says so. Here the cluster is asked first.
"""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from cryobench.conf.errors import ConfigError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: How a Ray 2.60 that is no part of a cluster is told so, on any system: else it listens on all addresses.
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
_REFUSED = 3
#: Asks the cluster for its nodes in a process of its own: Ray reads its mode once a process.
_ASK = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
except AuthenticationError:
    sys.exit({_REFUSED})
"""
_PATIENCE_S = 30.0


def prepare_access(address: str | None) -> None:
    """Set what Ray needs to be let in, before it is started or connected to.

    A Ray of this process's own listens on the loopback address alone, and gets a token that lives and ends with it, so
    that nothing is written into the home folder. Of a cluster at ``address`` it is found out whether it asks for one.

    Raises:
        ConfigError: nothing listens at ``address``, it is no Ray cluster, or it asks for a token that is not here.
    """
    if address is None:
        os.environ.setdefault(*_LOOPBACK)
        if MODE not in os.environ and not _token_is_here():
            os.environ[TOKEN] = secrets.token_hex(32)
        return
    if address.startswith("ray://"):
        # Through a Ray client Tune runs on the cluster's head, out of reach of what writes the leaderboard here.
        raise ConfigError(
            f"--address {address}: Ray Client addresses cannot run sweeps. Give HOST:6379 (the port of ray start "
            "--head) on a machine of the cluster, or start this command there with: ray job submit -- cryobench sweep …"
        )
    if address == "auto":
        return  # Ray finds the cluster of this machine and its token itself
    _require_listener(address)
    if MODE in os.environ:
        if os.environ[MODE].lower() == "token" and not _token_is_here():
            raise ConfigError(f"{MODE}=token, but there is no token. {_how_to_give_one()}")
        if _is_let_in(address, os.environ[MODE]):
            return
        raise ConfigError(f"The Ray cluster at {address} refuses with {MODE}={os.environ[MODE]}. {_how_to_give_one()}")
    if _is_let_in(address, "disabled"):
        return
    if not _token_is_here():
        raise ConfigError(f"The Ray cluster at {address} asks for a token; there is none here. {_how_to_give_one()}")
    if not _is_let_in(address, "token"):
        raise ConfigError(
            f"The Ray cluster at {address} refuses the token in {_token_place()}: it is that of another cluster. "
            f"{_how_to_give_one()}"
        )
    _send_token()


def _send_token() -> None:
    os.environ[MODE] = "token"
    if "ray" in sys.modules:  # it has read its mode already; this is how Ray itself has it read again
        importlib.import_module("ray._raylet").Config.initialize("")


def _require_listener(address: str) -> None:
    """Where nothing listens Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):
        raise ConfigError(f"--address {address}: expected HOST:PORT (ray start --head prints it), or auto.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"Cannot reach a Ray cluster at {address} ({error}). Start one with: ray start --head, and give --address "
            "HOST:6379; without --address the sweep runs on this machine alone."
        ) from error


def _is_let_in(address: str, mode: str) -> bool:
    """Whether the cluster answers a program in this mode; whatever else goes wrong, connecting will say."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            env={**os.environ, MODE: mode},
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"What listens at {address} does not answer as a Ray cluster does, within {_PATIENCE_S:g} s. Give the port "
            "that ray start --head printed (6379, not that of the dashboard)."
        ) from None
    return done.returncode != _REFUSED


def _token_is_here() -> bool:
    if os.environ.get(TOKEN):
        return True
    path = Path(os.environ.get(TOKEN_PATH) or _default_path())
    return path.is_file() and path.stat().st_size > 0


def _token_place() -> str:
    return f"${TOKEN}" if os.environ.get(TOKEN) else str(os.environ.get(TOKEN_PATH) or _default_path())


def _default_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _how_to_give_one() -> str:
    return (
        f"Run ray get-auth-token on the cluster's head, and put what it prints into {_default_path()} here, into a "
        f"file that {TOKEN_PATH} names, or into {TOKEN}."
    )
