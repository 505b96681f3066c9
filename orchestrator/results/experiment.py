"""A sweep's experiment in MLflow, which belongs to one storage: its id stands in a tag.

Two storages may hold sweeps of one name and share a server. In one experiment each would delete the other's runs as
superfluous, so the second gets an experiment of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cryobench.conf.errors import TrackingError
from cryobench.workers.record.storage_mark import mark_storage

#: The experiment's tag with the id of the storage whose sweep it shows.
OWNER = "cryobench.storage"
#: Characters of an id that a second storage's experiment carries in its name.
_SHORT = 6


def storage_id(storage: Path, url: str | None) -> str:
    """What tells this storage from others, wherever it is moved: its mark, or an object store's URL.

    Call it under the storage's lock. A damaged mark is made anew; the storage then has an experiment of its own.
    """
    if url is not None:
        return hashlib.sha256(url.encode()).hexdigest()[:16]
    return mark_storage(storage)


def own_experiment(client: Any, sweep: str, owner: str, location: str | None, *, embedded: bool) -> Any:
    """The experiment named ``sweep`` if it is this storage's or nobody's yet, else one named ``sweep@id``.

    Args:
        client: MLflow's client.
        sweep: the sweep's name.
        owner: the storage's id.
        location: where a new experiment keeps its artifacts; None leaves it to the server.
        embedded: the database lies in the storage, and with it belongs to it whatever a tag says.

    Raises:
        TrackingError: both names belong to other storages.
    """
    names = (sweep, f"{sweep}@{owner[:_SHORT]}")
    for name in names:
        found = _found_or_made(client, name, owner, location)
        if embedded or found.tags.get(OWNER, owner) == owner:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            if OWNER not in found.tags:  # made by an earlier release, or by hand
                client.set_experiment_tag(found.experiment_id, OWNER, owner)
            return found
    raise TrackingError(
        f"MLflow's experiments {names[0]} and {names[1]} belong to other storages (their tag {OWNER}). Rename one of "
        "them in MLflow, or give the sweep another name=."
    )


def _found_or_made(client: Any, name: str, owner: str, location: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made = client.create_experiment(name, artifact_location=location, tags={OWNER: owner})
            found = client.get_experiment(made)
        except MlflowException as error:  # another storage was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return found
