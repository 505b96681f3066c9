"""Central wavelengths of the Sentinel-2 bands, and what a band without one counts as."""

from __future__ import annotations

from collections.abc import Mapping

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
#: In µm, as DOFA uses them; radar has the wavelength that DOFA gives it.
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
    "VV": 3.75,
    "VH": 3.75,
    "HH": 3.75,
    "HV": 3.75,
}


def nearest(name: str, table: Mapping[str, float]) -> float:
    """The wavelength of band ``name``; a channel that is no band (topography, say) counts as the middle one, B8A."""
    return table.get(name, table["B8A"])
