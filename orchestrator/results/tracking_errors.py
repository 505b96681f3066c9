"""Errors of MLflow and of its database in words of ours: those about one run, and those about the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryobench.conf.errors import TrackingError
from cryobench.orchestrator.formatting import masked

#: What MLflow answers about one run; any other error is about the server.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "MALFORMED_REQUEST"}
_NETWORK = (ConnectionError, TimeoutError)
_GONE = "RESOURCE_DOES_NOT_EXIST"


class RefusedError(TrackingError):
    """MLflow is there and refuses one trial; all others can be written."""


class RunGoneError(TrackingError):
    """The run that a trial was known to have was deleted."""


@contextmanager
def explained(uri: str, trial: str | None = None) -> Iterator[None]:
    """Raise what MLflow raises about ``uri`` as errors of ours.

    Raises:
        RunGoneError: the trial's run was deleted.
        RefusedError: MLflow refuses this trial.
        TrackingError: the server or database cannot be reached or refuses altogether.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, ImportError) as error:
        if trial is not None and isinstance(error, OSError) and not isinstance(error, _NETWORK):
            raise  # a file of this trial, or the disk: nothing that the next trial need share
        if trial is not None and (_code(error) == _GONE or "active' state" in str(error)):
            raise RunGoneError(f"The MLflow run of trial {trial} was deleted ({_in_short(error)}).") from error
        if trial is not None and _code(error) in _REFUSALS:
            raise RefusedError(
                f"MLflow refuses trial {trial} ({_in_short(error)}). Its result is safe in its folder and in the "
                "leaderboard; all other trials are written."
            ) from error
        raise _unusable(uri, error) from error
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy") or (trial is None and isinstance(error, ValueError)):
            raise _unusable(uri, error) from error
        raise


def _code(error: BaseException) -> str:
    return str(getattr(error, "error_code", ""))


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _unusable(uri: str, error: BaseException) -> TrackingError:
    return TrackingError(
        f"MLflow at {masked(uri)} cannot be used ({masked(_in_short(error), uri)}). Results are safe "
        "in the trial folders: start the server or give another --tracking-uri (or --tracking-uri none), and run "
        "cryobench sync to bring MLflow up to date."
    )
