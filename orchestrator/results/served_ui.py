"""The app that `cryobench ui` serves: MLflow's own, which reads and writes artifacts in the folders it is given alone.

MLflow serves the artifacts of an experiment from wherever its database says, with the rights of who started it, and
whoever can make an experiment says where. Registered as an app of MLflow's (entry point ``mlflow.app``), because its
server processes import it by name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryobench.conf.errors import ConfigError, MissingLibraryError

#: The app's name among MLflow's.
APP = "cryobench-ui"
_FOLDERS, _AUTH = "CRYOBENCH_UI_FOLDERS", "CRYOBENCH_UI_AUTH"
#: Schemes of artifacts that lead on to others, which are looked at in turn.
_INDIRECT = {"runs", "models"}
_CONFIG = """[mlflow]
default_permission = READ
database_uri = {uri}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def create_app() -> Any:
    """MLflow's app, made in each of its server's processes."""
    limit_artifacts([Path(folder) for folder in os.environ[_FOLDERS].split(os.pathsep)])
    if os.environ.get(_AUTH):
        from mlflow.server.auth import create_app as with_passwords

        return with_passwords()
    from mlflow.server.fastapi_app import app

    return app


def environment(folders: Sequence[Path], users: tuple[Path, str] | None, scratch: Path) -> dict[str, str]:
    """What the server's processes have to know: nothing that is secret.

    Args:
        folders: those whose artifacts may be shown.
        users: the database of users and its first one's name; None asks nobody who they are.
        scratch: a folder for MLflow's configuration, which is there as long as the server.
    """
    # No jobs: they run what is asked for.
    found = {_FOLDERS: os.pathsep.join(map(str, folders)), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if users is not None:
        config = scratch / "auth.ini"
        uri = _uri(users[0]).replace("%", "%%")
        config.write_text(_CONFIG.format(uri=uri, user=users[1]))
        found |= {
            _AUTH: "1",
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        }
    return found


def set_password(database: Path, user: str, password: str) -> None:
    """Make ``user`` one who may do everything, with this password.

    Raises:
        MissingLibraryError: MLflow's authentication is not installed.
        ConfigError: MLflow takes no such user or password, or the database is damaged.
    """
    try:
        import flask_wtf  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError("ui --auth needs Flask-WTF: pip install 'cryobench[auth]'.") from error
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    try:
        database.touch(mode=0o600)
        store = SqlAlchemyStore()
        store.init_db(_uri(database))
        if store.has_user(user):
            store.update_user(user, password=password, is_admin=True)
        else:
            store.create_user(user, password, is_admin=True)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).replace(password, "***").split())[:300]
        raise ConfigError(
            f"Cannot keep user {user!r} in {database} ({reason}). Give another name, or remove the file: it holds "
            "users and their passwords' hashes alone."
        ) from error


def limit_artifacts(folders: Sequence[Path]) -> None:
    """Let this process' MLflow reach artifacts below ``folders`` alone, whatever its database says."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    roots = [folder.resolve() for folder in folders]

    class Limited(LocalArtifactRepository):
        """Local artifacts below the folders; MLflow itself keeps each access below the artifact's own."""

        def __init__(self, artifact_uri: str, *arguments: Any, **options: Any) -> None:
            super().__init__(artifact_uri, *arguments, **options)
            where = Path(self.artifact_dir).resolve()
            if not any(where.is_relative_to(root) for root in roots):
                refuse(artifact_uri)

    def refuse(artifact_uri: str, *_: Any, **__: Any) -> Any:
        raise MlflowException(
            f"Artifacts at {artifact_uri} are not shown here: they lie outside {', '.join(map(str, roots))}. Start "
            "cryobench ui with the --storage that they belong to, or name their folder with --artifacts.",
            error_code=PERMISSION_DENIED,
        )

    registry = get_registered_artifact_repositories()
    for scheme in registry:
        if scheme not in _INDIRECT:
            registry[scheme] = Limited if scheme in ("", "file") else refuse


def _uri(database: Path) -> str:
    return f"sqlite:///{database}"
