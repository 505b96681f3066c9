import pytest

from cryobench.conf.compose import load_dataset, load_encoder
from cryobench.conf.errors import ConfigError
from cryobench.conf.feeding import choose_variant, feed
from cryobench.conf.trial import Source


def sources(encoder: str, dataset: str, view: str = "reference", modality: str = "auto") -> dict[str, list[str]]:
    spec, data = load_encoder(encoder), load_dataset(dataset)
    variant = choose_variant(spec, data, modality, view)  # type: ignore[arg-type]
    _, plan = feed(spec, variant, data, view)  # type: ignore[arg-type]

    def name(source: Source | None) -> str:
        return "-" if source is None else data.groups[source.group][source.index]

    return {modality: [name(s) for s in inputs] for modality, inputs in plan.inputs.items()}


def test_bands_match_by_name_and_absent_ones_stay_empty() -> None:
    found = sources("s12_moco", "glid")["optical"]
    assert found == ["-", "B2", "B3", "B4", *["-"] * 9]


def test_the_reference_view_feeds_topography_under_band_names() -> None:
    found = sources("s12_moco", "debris")["optical"]
    assert found == ["-", "B2", "B3", "B4", "slope", "elevation", "-", "B8", "thermal", "-", "-", "B11", "-"]


def test_the_actual_view_feeds_optical_encoders_optical_bands_only() -> None:
    found = sources("s12_moco", "debris", view="actual")["optical"]
    assert found == ["-", "B2", "B3", "B4", "-", "-", "-", "B8", "-", "-", "-", "B11", "-"]


def test_a_system_from_scratch_takes_everything_optical_then_radar() -> None:
    for view in ("reference", "actual"):
        found = sources("unet", "debris", view=view)
        assert set(found["optical"]) == {"B2", "B3", "B4", "B8", "B11", "thermal", "slope", "elevation"}
        assert found["sar"] == ["coherence"]


def test_radar_stands_in_for_colour_where_there_is_nothing_else() -> None:
    assert sources("gfm_swin", "caffe")["optical"] == ["VV", "VV", "VV"]
    assert sources("gfm_swin", "sicd")["optical"] == ["HH", "HV", "incidence_angle"]


def test_a_radar_variant_is_preferred_on_radar_data() -> None:
    assert sources("s12_mae", "caffe") == {"sar": ["VV", "-"]}
    assert sources("s12_mae", "sicd") == {"sar": ["HH", "HV"]}
    assert set(sources("s12_mae", "glid")) == {"optical"}
    assert set(sources("s12_mae", "caffe", modality="optical")) == {"optical"}


def test_an_unknown_variant_and_no_common_band_are_explained() -> None:
    with pytest.raises(ConfigError, match="has no sar variant; it has: optical"):
        sources("s12_moco", "glid", modality="sar")
    with pytest.raises(ConfigError, match="no band in common"):
        sources("s12_mae", "glid", modality="sar")


def test_encoders_of_any_band_take_no_topography_under_its_own_name() -> None:
    assert sources("dofa", "debris", view="actual")["optical"] == ["B2", "B3", "B4", "B8", "B11"]
    assert set(sources("dofa", "debris")["optical"]) == {"B2", "B3", "B4", "B8", "B11", "thermal", "slope", "elevation"}
    assert sources("ramen", "debris", view="actual", modality="joint")["sar"] == ["coherence"]
