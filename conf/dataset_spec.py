"""What a data set is: how its files are read, where they are published, what channels and labels mean."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cryobench.conf.strict import Fraction, Strict
from cryobench.conf.terms import IGNORE, Group, Split


class ChannelSpec(Strict):
    """One channel of the raw files: what it is, and under which name the reference feeds it."""

    name: str
    group: Group
    fed_as: str | None = None


class LayoutSpec(Strict):
    """Where the raw files lie: patterns relative to the source folder, alternatives in order of preference.

    ``mask_tag`` is what the masks' names hold besides their images', e.g. ``_zones``. ``validation_share`` is for
    data that are published without validation split: that share of the training files, those whose names' SHA-256
    comes first, becomes one.
    """

    images: tuple[str, ...] = ("{split}/images", "{split}/image", "images/{split}")
    masks: tuple[str, ...] = ("{split}/masks", "{split}/mask", "labels/{split}")
    pairing: Literal["name", "order"] = "name"
    mask_tag: str = ""
    validation_share: Fraction | None = None


class GridSpec(Strict):
    """How scenes are cut into tiles: ``side`` pixels, at least ``overlap`` of them shared by neighbours.

    The last tile of a row or column is shifted back to the scene's edge. In validation and test a pixel that several
    tiles hold is labelled in the first alone, so that it counts once. A scene smaller than a tile is filled up at the
    bottom and right, without labels.
    """

    side: Annotated[int, Field(gt=0)]
    overlap: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _advances(self) -> GridSpec:
        if self.overlap >= self.side:
            raise ValueError(f"overlap must be smaller than side, got {self.overlap} of {self.side}")
        return self


class EditionSpec(Strict):
    """One published form of a data set: what differs from the data set's own fields."""

    layout: LayoutSpec
    reader: str | None = None
    mask_codes: dict[int, int] | None = None
    grid: GridSpec | None = None
    tiles: dict[Split, int] | None = Field(default=None, description="published number of tiles")


class Statistics(Strict):
    """Mean and standard deviation a channel, in the units of the raw files; null where none is published."""

    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]


class DownloadSpec(Strict):
    """A published file, or all files of a Zenodo record; ``md5`` and ``sha256`` where they are published."""

    url: str | None = None
    zenodo: Annotated[int, Field(gt=0)] | None = None
    file: Annotated[str, Field(pattern=r"^[^/\\]+$")] | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> DownloadSpec:
        if (self.url is None) == (self.zenodo is None):
            raise ValueError("a download has either url or zenodo")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"expected an http(s) address, got {self.url!r}")
        return self


class DatasetSpec(Strict):
    """A data set: how its files are read and what their channels and labels mean."""

    name: str
    title: str
    reader: str
    channels: Annotated[tuple[ChannelSpec, ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=IGNORE)]
    layout: LayoutSpec = LayoutSpec()
    editions: dict[str, EditionSpec] = Field(default={}, description="published forms, instead of layout alone")
    grid: GridSpec | None = Field(default=None, description="how scenes are cut; none: a file is a tile")
    downloads: tuple[DownloadSpec, ...] = ()
    sensor: str = ""
    source: str = ""
    gsd: float | None = Field(default=None, gt=0, description="ground sampling distance in metres")
    tile: int | None = Field(default=None, gt=0, description="side of a published tile in pixels")
    mask_codes: dict[int, int] | None = Field(default=None, description="raw label value -> class")
    mask_ignore: int | None = Field(default=None, description="raw label value of unlabelled pixels")
    nan_fill: float | None = Field(default=None, description="what replaces NaN; none: NaN is an error")
    no_data: float | None = Field(default=None, description="a raw value that means no data, filled like NaN")
    no_data_label: Literal["keep", "ignore"] = Field(
        default="keep", description="the label where no optical or radar channel has data"
    )
    published_statistics: Statistics | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        names = [c.name for c in self.channels]
        if len(set(names)) != len(names):
            raise ValueError(f"channel names must be unique, got {names}")
        for codes in (self.mask_codes, *(edition.mask_codes for edition in self.editions.values())):
            wrong = sorted(v for v in (codes or {}).values() if not 0 <= v < len(self.classes))
            if wrong:
                raise ValueError(f"mask_codes maps to classes {wrong}; there are {len(self.classes)} (0-based)")
        stats = self.published_statistics
        if stats and (len(stats.mean) != len(names) or len(stats.std) != len(names)):
            raise ValueError(f"published_statistics needs {len(names)} values each, one a channel")
        if self.no_data is not None and self.nan_fill is None:
            raise ValueError("no_data needs nan_fill: what replaces it")
        return self

    @property
    def groups(self) -> dict[Group, tuple[str, ...]]:
        """Channel names by input group, in file order."""
        found: dict[Group, tuple[str, ...]] = {}
        for channel in self.channels:
            found[channel.group] = (*found.get(channel.group, ()), channel.name)
        return found

    def members(self, group: Group) -> list[int]:
        """Numbers of a group's channels in the raw files."""
        return [i for i, channel in enumerate(self.channels) if channel.group == group]

    def edition(self, name: str) -> DatasetSpec:
        """The data set as one of its editions has it; the empty name is the data set's own layout."""
        if not name:
            return self
        own = self.editions[name]
        return self.model_copy(
            update={
                "layout": own.layout,
                "reader": own.reader or self.reader,
                "mask_codes": own.mask_codes or self.mask_codes,
                "grid": own.grid or self.grid,
            }
        )
