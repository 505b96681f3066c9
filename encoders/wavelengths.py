"""Central wavelengths of the Sentinel-2 bands."""

from __future__ import annotations

from collections.abc import Mapping

from cryobench.conf.errors import UnknownNameError

#: In nm, as RAMEN uses them.
NANOMETRES = {
    "B1": 440.0,
    "B2": 490.0,
    "B3": 560.0,
    "B4": 665.0,
    "B5": 705.0,
    "B6": 740.0,
    "B7": 783.0,
    "B8": 832.0,
    "B8A": 865.0,
    "B9": 945.0,
    "B10": 1373.0,
    "B11": 1610.0,
    "B12": 2200.0,
}
#: In µm, as DOFA uses them.
MICROMETRES = {
    "B1": 0.44,
    "B2": 0.49,
    "B3": 0.56,
    "B4": 0.665,
    "B5": 0.705,
    "B6": 0.74,
    "B7": 0.783,
    "B8": 0.832,
    "B8A": 0.864,
    "B9": 0.945,
    "B10": 1.373,
    "B11": 1.61,
    "B12": 2.2,
}
#: In µm: what DOFA gives every radar channel.
RADAR_MICROMETRES = 3.75


def wavelength(name: str, table: Mapping[str, float]) -> float:
    """The wavelength of an optical band; an error for a channel that has none, such as topography."""
    if name not in table:
        raise UnknownNameError(
            "band with a wavelength", name, table, "Name the band after Sentinel-2's, or feed it as one (fed_as)."
        )
    return table[name]
