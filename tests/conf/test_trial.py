import hashlib
from collections.abc import Callable

import pytest

from cryobench.conf.identity import canonical_json, identity, identity_digest
from cryobench.conf.trial import TrialSpec

Build = Callable[..., TrialSpec]


def test_an_id_is_sixteen_hex_digits_and_stable(one_trial: Build) -> None:
    assert one_trial().trial_id == one_trial().trial_id
    assert len(one_trial().trial_id) == 16
    int(one_trial().trial_id, 16)


def test_a_spec_survives_its_json_with_the_same_id(one_trial: Build) -> None:
    spec = one_trial()
    again = TrialSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.trial_id == spec.trial_id


@pytest.mark.parametrize(
    "override", ["lr=2e-3", "seed=1", "protocol.epochs=4", "regime=frozen", "regime=few_shot", "statistics=published"]
)
def test_whatever_can_change_a_result_changes_the_id(one_trial: Build, override: str) -> None:
    assert one_trial(override).trial_id != one_trial().trial_id


@pytest.mark.parametrize("override", ["resources.loader_threads=5", "resources.max_concurrent=1", "name=other"])
def test_what_cannot_change_a_result_stays_out(one_trial: Build, override: str) -> None:
    assert one_trial(override).trial_id == one_trial().trial_id


def test_descriptions_and_paths_stay_out(one_trial: Build) -> None:
    spec = one_trial()
    encoder = spec.encoder.model_copy(update={"title": "Other"})
    weights = encoder.weights.model_copy(update={"file": "elsewhere.pth"})
    renamed = spec.model_copy(update={"encoder": encoder.model_copy(update={"weights": weights})})
    assert renamed.trial_id == spec.trial_id


def test_canonical_json_sorts_and_keeps_floats_exact() -> None:
    assert canonical_json({"b": 0.1 + 0.2, "a": [1, True]}) == '{"a":[1,true],"b":0.30000000000000004}'


def test_the_identity_holds_no_label(one_trial: Build) -> None:
    assert "title" not in identity(one_trial())["encoder"]
    assert "name" not in identity(one_trial())["dataset"]


def test_the_text_of_an_identity_is_its_canonical_json_and_is_kept(one_trial: Build) -> None:
    spec = one_trial()
    digest = hashlib.sha256(canonical_json(identity(spec)).encode()).hexdigest()
    assert spec.trial_id == spec.trial_id == digest[:16]
    assert spec == one_trial()  # what is kept with a model is no part of it
    assert spec.model_dump() == one_trial().model_dump()


def test_a_copy_with_another_value_has_another_id_although_its_model_kept_its_own(one_trial: Build) -> None:
    spec = one_trial()
    before, protocol = spec.trial_id, identity_digest(spec.protocol)
    longer = spec.protocol.model_copy(update={"epochs": spec.protocol.epochs + 1})
    assert identity_digest(longer) != protocol
    other = spec.model_copy(update={"protocol": longer})
    assert other.trial_id == hashlib.sha256(canonical_json(identity(other)).encode()).hexdigest()[:16] != before
    assert spec.model_copy(update={"seed": spec.seed + 1}).trial_id != before
    assert spec.trial_id == before
