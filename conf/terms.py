"""The words of the field that types and constants stand for. Needs nothing but Python."""

from __future__ import annotations

from typing import Literal

Modality = Literal["optical", "sar"]
Variant = Literal["own", "optical", "sar", "joint"]
Group = Literal["optical", "sar", "ancillary"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: Value of pixels without a label in every stored mask, whatever the raw files use.
IGNORE = 255

#: Names that are radar polarisations wherever they appear; all other names are optical.
SAR_NAMES = frozenset({"VV", "VH", "HH", "HV"})

#: A setting of an encoder: plain data only, never a class path.
Setting = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
