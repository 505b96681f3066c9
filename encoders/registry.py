"""Encoder families by name. Importing this module imports no encoder; building one imports only its own.

Other packages add families by an entry point of the group ``cryobench.encoders``: its name is the family, its value
the `Encoder` subclass.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from cryobench.conf.errors import ConfigError, NotBuiltError

if TYPE_CHECKING:
    from cryobench.conf.trial import TrialEncoder
    from cryobench.encoders.base import Encoder

#: Entry point group by which other packages add families.
ENTRY_POINTS = "cryobench.encoders"

#: Family -> (module, class), this package's own.
_OWN = {
    "timm_vit": ("cryobench.encoders.vit", "TimmVit"),
    "timm_clip": ("cryobench.encoders.vit", "ClipVit"),
    "prithvi": ("cryobench.encoders.vit", "Prithvi"),
    "scale_mae": ("cryobench.encoders.vit", "ScaleMae"),
    "timm_beit": ("cryobench.encoders.beit", "TimmBeit"),
    "timm_swin": ("cryobench.encoders.swin", "TimmSwin"),
    "torchvision_swin": ("cryobench.encoders.swin", "SatlasSwin"),
    "spectralgpt": ("cryobench.encoders.spectralgpt", "SpectralGPT"),
    "ramen": ("cryobench.encoders.ramen", "Ramen"),
    "croma": ("cryobench.encoders.torchgeo_models", "Croma"),
    "dofa": ("cryobench.encoders.torchgeo_models", "Dofa"),
    "terramind": ("cryobench.encoders.terramind", "TerraMind"),
    "unet": ("cryobench.encoders.unet", "UNetEncoder"),
}


@cache
def families() -> dict[str, tuple[str, str]]:
    """All families, those of installed plug-ins too. A plug-in may not take the name of one of these."""
    found = dict(_OWN)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in _OWN:
            raise ConfigError(
                f"The package {point.dist.name if point.dist else '?'} adds an encoder family '{point.name}', which is "
                f"one of cryobench's own. Give it another name in its entry point ({ENTRY_POINTS})."
            )
        found[point.name] = (point.module, point.attr)
    return found


def is_built(family: str) -> bool:
    """Whether this release has an implementation of ``family``."""
    return family in families()


def family_class(family: str, name: str) -> type[Encoder]:
    """The class of a family.

    Raises:
        NotBuiltError: encoder ``name`` is configured, but its family is not part of this release.
    """
    if not is_built(family):
        raise NotBuiltError(
            f"Encoder '{name}' needs the family '{family}', which is not part of this release. "
            f"Families here: {', '.join(sorted(families()))}. Install the package that adds it, "
            "or leave the encoder out."
        )
    module, attribute = families()[family]
    found: type[Encoder] = getattr(importlib.import_module(module), attribute)
    return found


def build(encoder: TrialEncoder) -> Encoder:
    """The encoder of a trial with freshly initialised weights (torch's current random state)."""
    size = None if encoder.input_size == "tile" else encoder.input_size
    cls = family_class(encoder.family, encoder.name)
    return cls.build(encoder.bands, size, encoder.settings)
