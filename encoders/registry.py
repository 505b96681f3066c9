"""Encoder families by name. Importing this module imports no encoder; building one imports only its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cryobench.conf.errors import NotBuiltError

if TYPE_CHECKING:
    from cryobench.conf.trial import TrialEncoder
    from cryobench.encoders.base import Encoder

#: Family -> (module, class).
FAMILIES = {
    "timm_vit": ("cryobench.encoders.vit", "TimmVit"),
    "unet": ("cryobench.encoders.unet", "UNetEncoder"),
}


def is_built(family: str) -> bool:
    """Whether this release has an implementation of ``family``."""
    return family in FAMILIES


def family_class(family: str, name: str) -> type[Encoder]:
    """The class of a family.

    Raises:
        NotBuiltError: encoder ``name`` is configured, but its family is not part of this release.
    """
    if not is_built(family):
        raise NotBuiltError(
            f"Encoder '{name}' needs the family '{family}', which is not part of this release. "
            f"Families here: {', '.join(FAMILIES)}. Leave it out of encoders=[...] until then."
        )
    module, attribute = FAMILIES[family]
    found: type[Encoder] = getattr(importlib.import_module(module), attribute)
    return found


def build(encoder: TrialEncoder) -> Encoder:
    """The encoder of a trial with freshly initialised weights (torch's current random state)."""
    size = None if encoder.input_size == "tile" else encoder.input_size
    cls = family_class(encoder.family, encoder.name)
    return cls.build(encoder.bands, size, encoder.settings)
