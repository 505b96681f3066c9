"""The editions of the benchmark: which data sets each one names, and how it ranks. Nothing else says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cryobench.conf.errors import UnknownNameError


@dataclass(frozen=True)
class Edition:
    """One edition. Averages and ranks are over ``datasets``, in the order of the published table.

    ``rank_by``: ``data_set`` averages the ranks on the single data sets; ``average`` ranks the averages.
    """

    name: str
    datasets: tuple[str, ...]
    rank_by: Literal["data_set", "average"]


#: By name, oldest first. glb and shelf_bench are published, and not configured here yet.
EDITIONS = {
    edition.name: edition
    for edition in (
        Edition("2026-03", ("glid", "gld", "sicd", "caffe", "gsdd"), "data_set"),
        Edition("2026-08", ("gsdd", "glid", "glb", "sicd", "caffe", "shelf_bench"), "average"),
    )
}
DEFAULT_EDITION = "2026-03"


def edition_named(name: str) -> Edition:
    """An edition by its name.

    Raises:
        UnknownNameError: there is none of that name; the message lists those that there are.
    """
    if name not in EDITIONS:
        raise UnknownNameError("edition of the benchmark", name, EDITIONS)
    return EDITIONS[name]


def editions_of(dataset: str, origin: str | None) -> tuple[str, ...]:
    """The editions that name a data set; generated data belong to none, whatever they are called."""
    if is_generated(origin):
        return ()
    return tuple(edition.name for edition in EDITIONS.values() if dataset in edition.datasets)


def is_generated(origin: str | None) -> bool:
    """Whether the origin that a tile store records is the program's own generator."""
    return (origin or "").startswith("generated")
