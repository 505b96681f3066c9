"""Which channel of a data set an encoder sees in which place: one rule for all pairs.

An encoder's variant declares the bands it takes; a data set declares its channels, each with the name of what
it really is and the name under which the reference feeds it. Bands match by name; an absent band is zero after
normalisation, a superfluous channel is dropped, and an optical-only encoder on radar-only data gets the radar
channels in place of B4 B3 B2, the first one repeated where there are fewer than three. "The data set's own bands" are
its optical or radar ones; systems trained from scratch (variant ``own``) take the ancillary channels as well.
"""

from __future__ import annotations

from typing import Literal

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import EncoderSpec
from cryobench.conf.terms import SAR_NAMES, Modality, Variant
from cryobench.conf.trial import Feed, Source

_STAND_IN = ("B4", "B3", "B2")
_MODALITIES: tuple[Modality, ...] = ("optical", "sar")

View = Literal["reference", "actual"]


def choose_variant(
    encoder: EncoderSpec, dataset: DatasetSpec, modality: Variant | Literal["auto"], view: View
) -> Variant:
    """The encoder's variant for a data set: its own-bands one, else the asked-for modality, else what fits.

    ``auto`` prefers optical where the data set has optical bands, then radar, then optical with radar stand-ins.
    """
    variants = encoder.variants
    if "own" in variants:
        return "own"
    if modality != "auto":
        if modality not in variants:
            raise ConfigError(
                f"Encoder '{encoder.name}' has no {modality} variant; it has: {', '.join(variants)}. "
                "Set modality=auto or one of these."
            )
        return modality
    has_optical = bool(_available(dataset, view)["optical"])
    order: tuple[Variant, ...] = ("optical", "sar") if has_optical else ("sar", "optical")
    for name in order:
        if name in variants:
            return name
    return next(iter(variants))


def feed(
    encoder: EncoderSpec, variant: Variant, dataset: DatasetSpec, view: View
) -> tuple[dict[Modality, tuple[str, ...]], Feed]:
    """The bands that ``encoder`` takes and where each comes from in ``dataset``."""
    available = _available(dataset, view)
    bands: dict[Modality, tuple[str, ...]] = {}
    inputs: dict[Modality, tuple[Source | None, ...]] = {}
    for modality in _MODALITIES:
        wanted = encoder.variants[variant].bands.get(modality)
        if wanted is None:
            continue
        if wanted == "dataset":
            own = available[modality]
            if modality == "optical" and variant == "own":
                own = own | available["ancillary"]
            if own:
                bands[modality], inputs[modality] = tuple(own), tuple(own.values())
            continue
        offered = available[modality]
        if modality == "optical" and not offered and available["sar"]:
            offered = _stand_in(list(available["sar"].values()) + list(available["ancillary"].values()))
        bands[modality] = tuple(wanted)
        inputs[modality] = tuple(offered.get(name) for name in wanted)
    if not any(source for sources in inputs.values() for source in sources):
        raise ConfigError(
            f"Encoder '{encoder.name}' ({variant}) takes {_words(encoder, variant)}, and data set '{dataset.name}' "
            f"offers {', '.join(c.fed_as or c.name for c in dataset.channels)}: no band in common. "
            "Choose another modality= or give the channels their band names in the data set's YAML."
        )
    return bands, Feed(inputs=inputs)


def explain(encoder: EncoderSpec, variant: Variant, dataset: DatasetSpec, view: View) -> list[str]:
    """In words, what `feed` decides: a line an input channel, then what is dropped."""
    bands, plan = feed(encoder, variant, dataset, view)
    groups = dataset.groups
    lines = [f"{encoder.title} ({variant}) on {dataset.title}, {view} view"]
    used = set()
    for modality, names in bands.items():
        sources = plan.inputs[modality]
        stands_in = modality == "optical" and all(s is None or s.group == "sar" for s in sources)
        for name, source in zip(names, sources, strict=True):
            if source is None:
                lines.append(f"{modality} {name}: zero after normalisation; the data set has no such band")
                continue
            real = groups[source.group][source.index]
            repeated = " again" if source in used else ""
            used.add(source)
            if real == name:
                lines.append(f"{modality} {name}: {name}")
            elif stands_in and source.group == "sar" and name in _STAND_IN:
                lines.append(f"{modality} {name}: {real}{repeated}, radar standing in for colour")
            else:
                lines.append(f"{modality} {name}: {real}{repeated}, which the reference feeds under this name")
    offered = [Source(group=g, index=i) for g, names in groups.items() for i in range(len(names))]
    dropped = [groups[s.group][s.index] for s in offered if s not in used]
    if dropped:
        lines.append(f"dropped: {' '.join(dropped)}")
    return lines


def _available(dataset: DatasetSpec, view: View) -> dict[str, dict[str, Source]]:
    """Channels by modality and name under ``view``; ancillary ones keep to themselves in the actual view."""
    found: dict[str, dict[str, Source]] = {"optical": {}, "sar": {}, "ancillary": {}}
    position: dict[str, int] = {}
    for channel in dataset.channels:
        index = position.get(channel.group, 0)
        position[channel.group] = index + 1
        name, place = channel.name, str(channel.group)
        if view == "reference" and channel.fed_as:
            name = channel.fed_as
            place = "sar" if name in SAR_NAMES else "optical"
        found[place][name] = Source(group=channel.group, index=index)
    return found


def _stand_in(radar: list[Source]) -> dict[str, Source]:
    return {name: radar[i] if i < len(radar) else radar[0] for i, name in enumerate(_STAND_IN)}


def _words(encoder: EncoderSpec, variant: Variant) -> str:
    bands = encoder.variants[variant].bands
    return "; ".join(f"{m}: {' '.join(b) if b != 'dataset' else 'any'}" for m, b in bands.items())
