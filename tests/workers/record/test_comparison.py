from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cryobench.conf.errors import BadCheckpointError, ConfigError, StoppedEarlyError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record.comparison import compare
from cryobench.workers.record.events import Event
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.trial import retest_trial, run_trial

Build = Callable[..., TrialSpec]


def folder(place: Place, spec: TrialSpec) -> TrialFolder:
    run_trial(spec, place)
    return TrialFolder(place.storage, spec.trial_id)


def test_a_trial_run_twice_is_the_same(place: Place, one_trial: Build, tmp_path: Path) -> None:
    first = folder(place, one_trial())
    second = folder(replace(place, storage=tmp_path / "again"), one_trial())
    found = compare(first, second)
    assert found.same
    assert found.first_difference is None
    assert found.weights == ()
    assert found.tensors > 10
    assert [pair.epoch for pair in found.epochs] == [1, 2, 3]


def test_where_two_trials_part_is_found(place: Place, one_trial: Build) -> None:
    first = folder(place, one_trial())
    second = folder(place, one_trial("protocol.lr_milestones=[0.34]", "protocol.lr_gamma=0.5"))
    found = compare(first, second)
    assert not found.same
    assert found.asked == {"protocol.lr_gamma": (0.1, 0.5), "protocol.lr_milestones": ([0.6, 0.9], [0.34])}
    assert found.first_difference == 2  # the first epoch is trained at the same rate
    assert "final_weights" in found.outcome


def test_a_trial_that_was_stopped_early_is_compared_as_far_as_it_came(
    place: Place, one_trial: Build, tmp_path: Path
) -> None:
    elsewhere, seen = replace(place, storage=tmp_path / "again"), list[Event]()
    whole = folder(place, one_trial())
    with pytest.raises(StoppedEarlyError):
        run_trial(
            one_trial(),
            elsewhere,
            report=seen.append,
            should_stop=lambda: getattr(seen[-1], "epoch", 0) == 2,
            given_up=lambda: "behind others",
        )
    found = compare(whole, TrialFolder(elsewhere.storage, whole.trial_id))
    assert not found.same
    assert found.first_difference == 3
    assert found.outcome == {}
    assert found.pruned == ()  # its weights were not removed


def test_a_single_changed_weight_is_found(place: Place, one_trial: Build, tmp_path: Path) -> None:
    import json

    from cryobench.conf.digests import file_sha256

    first = folder(place, one_trial())
    second = folder(replace(place, storage=tmp_path / "again"), one_trial())
    (path,) = second.path.glob("best-*.safetensors")
    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name].view(-1)[0] += 0.25
    save_file(tensors, path)
    state = json.loads((second.path / "state.json").read_text())
    state["best"]["sha256"] = file_sha256(path)
    (second.path / "state.json").write_text(json.dumps(state))
    (pair,) = compare(first, second).weights or ()
    assert (pair.name, pair.differing) == (name.removeprefix("model."), 1)
    assert pair.largest == pytest.approx(0.25)


def test_a_result_can_be_made_again_from_its_checkpoint(place: Place, one_trial: Build) -> None:
    for overrides in ((), ("encoder=s12_moco_small", "regime=frozen")):
        spec = one_trial(*overrides)
        result = run_trial(spec, place)
        recorded, found = retest_trial(spec.trial_id, place)
        assert recorded == result.test
        assert found == recorded


def test_a_result_that_was_changed_comes_out_otherwise(place: Place, one_trial: Build) -> None:
    spec = one_trial()
    result = run_trial(spec, place)
    assert result.test is not None
    better = result.test.model_copy(update={"miou": 99.0})
    TrialFolder(place.storage, spec.trial_id).write_result(result.model_copy(update={"test": better}))
    recorded, found = retest_trial(spec.trial_id, place)
    assert recorded.miou == 99.0
    assert found == result.test


def test_what_cannot_be_tested_again_is_explained(place: Place, one_trial: Build) -> None:
    spec = one_trial()
    with pytest.raises(ConfigError, match="No trial at"):
        retest_trial(spec.trial_id, place)
    run_trial(spec, place)
    (path,) = TrialFolder(place.storage, spec.trial_id).path.glob("best-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadCheckpointError, match="best checkpoint of trial .* cannot be read"):
        retest_trial(spec.trial_id, place)
    (path.parent / "result.json").unlink()
    with pytest.raises(ConfigError, match="has no result yet"):
        retest_trial(spec.trial_id, place)


def test_weights_of_other_models_are_infinitely_far(place: Place, one_trial: Build) -> None:
    first, second = folder(place, one_trial()), folder(place, one_trial("encoder=s12_moco_small"))
    found = compare(first, second)
    assert found.weights
    assert max(pair.largest for pair in found.weights) == float("inf")
