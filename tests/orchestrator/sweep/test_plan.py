from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryobench.conf.compose import load_sweep
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import Plan, make_plan
from cryobench.orchestrator.sweep.suggestions import record_suggestion
from cryobench.orchestrator.sweep_record import read_sweep, record_sweep
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Failed, StoppedEarly
from cryobench.workers.record.folder import TrialFolder

TINY = ["protocol.epochs=1", "protocol.bootstrap_samples=100"]


def plan(where: Places, *overrides: str) -> Plan:
    return make_plan(load_sweep(list(overrides)), where)


@pytest.mark.parametrize(
    ("sweep", "count"),
    [
        ("demo", 24),
        ("paper_frozen", 16 * 5),
        ("paper_few_shot", 16 * 5),
        ("paper_finetune", 16 * 5),
        ("paper_lr_search", 16 * 2 * 5),
        ("full", 3 * 16 * 5 + 16 * 2 * 4),
    ],
)
def test_every_sweep_counts_right_whatever_is_missing(where: Places, sweep: str, count: int) -> None:
    made = plan(where, f"sweep={sweep}")
    assert len(made.trials) == count
    assert len({t.spec.trial_id for t in made.trials}) == count
    cells = {(t.spec.encoder.name, t.spec.dataset.name, t.spec.regime.name, t.spec.lr) for t in made.trials}
    assert len(cells) == count


def test_full_is_the_union_of_its_parts_without_doubles(where: Places) -> None:
    parts = [plan(where, f"sweep=paper_{p}") for p in ("frozen", "few_shot", "finetune", "lr_search")]
    union = {t.spec.trial_id for part in parts for t in part.trials}
    assert union == {t.spec.trial_id for t in plan(where, "sweep=full").trials}


def test_a_plan_says_what_is_missing(where: Places) -> None:
    made = plan(where, "sweep=paper_frozen", "encoders=[unet,s12_moco]", "datasets=[glid,gld,sicd]")
    states = {(t.spec.encoder.name, t.spec.dataset.name): t.state for t in made.trials}
    assert states[("unet", "glid")] == "pending"
    assert states[("unet", "gld")] == "missing_data"
    assert states[("unet", "sicd")] == "missing_data"
    assert states[("s12_moco", "glid")] == "missing_weights"
    told = "\n".join(made.missing())
    assert "run: cryobench data prepare gld --source DIR" in told
    assert "B13_vits16_moco_0099.pth (published: SSL4EO-S12 release)" in told


def test_the_json_form(where: Places) -> None:
    plain = plan(where, "sweep=demo").as_json()
    assert plain["counts"]["encoder"] == {"unet_small": 8, "vit_small_demo": 8, "s12_moco_small": 8}
    assert plain["counts"]["regime"] == {"frozen": 6, "few_shot": 6, "finetune": 12}
    assert plain["counts"]["state"] == {"pending": 24}
    first = plain["trials"][0]
    assert {"trial_id", "encoder", "dataset", "regime", "lr", "seed", "state"} <= first.keys()


def test_weights_enter_the_identity(where: Places) -> None:
    where.weights_dir.mkdir()
    overrides = ("sweep=paper_frozen", "encoders=[s12_moco]", "datasets=[glid]")
    (missing,) = plan(where, *overrides).trials
    assert missing.provisional
    path = where.weights_dir / "B13_vits16_moco_0099.pth"
    torch.save({"a": torch.zeros(1)}, path)
    (one,) = plan(where, *overrides).trials
    torch.save({"a": torch.ones(2)}, path)
    (mismatch,) = plan(where, *overrides).trials
    assert mismatch.state == "bad_checkpoint"
    assert "recorded in" in str(mismatch.message)
    (where.weights_dir / "sha256.json").unlink()
    (other,) = plan(where, *overrides).trials
    (random,) = plan(where, *overrides, "weights=random").trials
    assert len({t.spec.trial_id for t in (missing, one, other, random)}) == 4
    assert one.spec.encoder.weights.provenance.startswith("sha256:")
    assert random.spec.encoder.weights.provenance == "random"


def test_a_few_shot_subset_enters_the_spec_by_its_digest(where: Places) -> None:
    from cryobench.datasets.batches.subsets import stratified_subset, subset_digest
    from cryobench.datasets.store.tile_store import TileStore

    asked = ("sweep=demo", "encoders=[unet_small]", "datasets=[glid]", "regimes=[frozen,few_shot]", "lr_search=null")
    frozen, few = (t.spec for t in plan(where, *asked, "seeds=[7]").trials)
    assert frozen.dataset.subset is None
    counts = TileStore(where.store("glid")).class_pixels("train")
    assert few.dataset.subset == subset_digest(stratified_subset(counts, 0.1, 3, 7))
    (other,) = (t.spec for t in plan(where, *asked, "regimes=[few_shot]", "seeds=[8]").trials)
    assert other.dataset.subset != few.dataset.subset
    from cryobench.conf.errors import CorruptDataError
    from cryobench.conf.schema import ResourceSpec
    from cryobench.workers.training.trial_data import open_data

    wrong = few.model_copy(update={"dataset": few.dataset.model_copy(update={"subset": "0" * 64})})
    with pytest.raises(CorruptDataError, match="The rule changed between releases"):
        open_data(wrong, where.store("glid"), where.cache_dir, ResourceSpec())


def test_an_encoder_without_published_weights_runs_only_at_random(where: Places) -> None:
    (trial,) = plan(where, "encoder=s12_moco_small", "dataset=glid", "regime=frozen", "weights=published").trials
    assert trial.state == "missing_weights"
    assert "No weights are published for encoder 's12_moco_small'. Run it with weights=random" in str(trial.message)


def test_a_store_with_other_bands_is_missing_data(where: Places, tmp_path: Path) -> None:
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "mine.yaml").write_text(
        "title: Mine\nreader: paired\nchannels: [{name: B8, group: optical}]\nclasses: [background, lake]\n"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.zarr").symlink_to(where.data_dir / "glid.zarr")
    sweep = load_sweep(["encoder=unet_small", "dataset=mine", "regime=frozen"], tmp_path / "conf")
    (trial,) = make_plan(sweep, replace(where, data_dir=tmp_path / "data")).trials
    assert trial.state == "missing_data"
    assert "holds the bands B4 B3 B2, the configuration of 'mine' says B8" in str(trial.message)


def test_an_impossible_pair_is_said_before_anything_runs(where: Places) -> None:
    (trial,) = plan(where, "encoder=s12_mae", "dataset=glid", "regime=frozen", "modality=sar", "weights=random").trials
    assert trial.state == "impossible"


def test_a_search_covers_only_what_the_grid_holds(where: Places) -> None:
    made = plan(where, "sweep=demo", "regimes=[frozen]")
    assert {(t.spec.regime.name, t.spec.lr) for t in made.trials} == {("frozen", 1e-3)}
    made = plan(where, "sweep=demo", "lr_search={regimes: [finetune], datasets: [glid], lr: [1e-3, 1e-2]}")
    found = {(t.spec.dataset.name, t.spec.lr) for t in made.trials if t.spec.regime.name == "finetune"}
    assert found == {("glid", 1e-3), ("glid", 1e-2), ("caffe", 1e-3)}


def test_states_come_from_the_folders(where: Places) -> None:
    trials = plan(where, "sweep=demo").trials
    begun, failed, crashed = (TrialFolder(where.storage, t.spec.trial_id) for t in trials[:3])
    for folder, trial in zip((begun, failed, crashed), trials, strict=False):
        folder.write_spec(trial.spec)
        folder.record(AttemptStarted(host="node-1", pid=1, device="cpu", code="0"))
    begun.record(EpochFinished(epoch=2, loss=0.5, seconds=1.0, lr=1e-3))
    failed.record(Failed(kind="corrupt_data", message="tile 3 …"))
    crashed.record(Failed(kind="crashed", message="killed"))
    again = plan(where, "sweep=demo")
    assert [(t.state, t.kind, t.epoch) for t in again.trials[:4]] == [
        ("begun", None, 2),
        ("failed", "corrupt_data", 0),
        ("failed", "crashed", 0),
        ("pending", None, 0),
    ]
    todo = {t.spec.trial_id for t in again.to_run()}
    assert begun.trial_id in todo
    assert crashed.trial_id in todo
    assert failed.trial_id not in todo
    assert failed.trial_id in {t.spec.trial_id for t in again.to_run(retry_failed=True)}


def test_a_sweep_record_keeps_every_request(where: Places) -> None:
    where.storage.mkdir()
    first = plan(where, "sweep=demo", "encoders=[unet_small]")
    second = plan(where, "sweep=demo")
    record_sweep(where.storage, first.sweep, first.trial_ids)
    record_sweep(where.storage, second.sweep, second.trial_ids)
    record = record_sweep(where.storage, second.sweep, second.trial_ids)
    assert record.requests == (first.sweep, second.sweep)
    assert len(record.trials) == 24
    assert read_sweep(where.storage, "demo") == record


def test_an_encoder_of_an_unknown_family_refuses(where: Places, tmp_path: Path) -> None:
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    (tmp_path / "conf" / "encoder" / "mine.yaml").write_text(
        "title: Mine\nfamily: elsewhere\ninput_size: 32\nvariants: {own: {bands: {optical: dataset}}}\n"
    )
    sweep = load_sweep(["encoder=mine", "dataset=glid", "regime=frozen"], tmp_path / "conf")
    (trial,) = make_plan(sweep, where).trials
    assert trial.state == "not_built"
    assert "needs the family 'elsewhere'" in str(trial.message)


def test_what_was_stopped_early_runs_where_nothing_stops_it_again(where: Places) -> None:
    asked = ("sweep=demo", "encoders=[unet_small]", "datasets=[glid]", "regimes=[finetune]", "lr_search=null", *TINY)
    (trial,) = plan(where, *asked).trials
    folder = TrialFolder(where.storage, trial.spec.trial_id)
    folder.write_spec(trial.spec)
    folder.record(AttemptStarted(host="h", pid=1, device="cpu", code="x"))
    folder.record(EpochFinished(epoch=1, loss=1.0, lr=1e-3, seconds=1.0, val_miou=5.0))
    folder.record(StoppedEarly(epoch=1, message="asha: behind"))
    searching, training = plan(where, *asked, "scheduler=asha"), plan(where, *asked)
    assert searching.counts()["state"] == {"pruned": 1}
    assert (searching.trials[0].epoch, searching.trials[0].message) == (1, "asha: behind")
    assert searching.to_run() == []
    assert searching.to_run(retry_failed=True) == []
    assert searching.to_run(retry_pruned=True) == list(searching.trials)
    assert training.to_run() == list(training.trials)


OPTUNA = (
    "sweep=demo",
    "encoders=[unet_small,vit_small_demo]",
    "datasets=[glid]",
    "regimes=[frozen,finetune]",
    "lr=[1e-3]",
    "search=optuna",
    "lr_search={regimes:[finetune],lr:[1e-5,1e-1],samples:3}",
)


def test_a_plan_of_a_search_has_what_was_suggested_and_says_how_many_are_to_come(where: Places) -> None:
    made = plan(where, *OPTUNA)
    assert len(made.trials) == 4  # the rates between which is searched are not run themselves
    assert made.to_suggest == made.as_json()["to_suggest"] == 6
    cell = next(cell for cell in made.cells if cell.template.encoder.name == "unet_small")
    spec = cell.template.model_copy(update={"lr": 3e-4})
    record_suggestion(where.storage, "demo", spec, 5)
    again = plan(where, *OPTUNA)
    assert len(again.trials) == 5
    assert spec.trial_id in again.trial_ids
    assert again.to_suggest == 5
    other = plan(where, *OPTUNA, "protocol.epochs=2")  # other trials: what was suggested says nothing of them
    assert (len(other.trials), other.to_suggest) == (4, 6)
    fewer = plan(where, *OPTUNA, "lr_search.samples=1")
    assert (len(fewer.trials), fewer.to_suggest) == (5, 1)
    assert plan(where, "sweep=demo").to_suggest == 0


def test_nothing_is_suggested_where_data_are_missing(where: Places) -> None:
    made = plan(where, *OPTUNA, "datasets=[glid,gld]")
    assert made.to_suggest == 6
    assert {cell.blocked for cell in made.cells} == {False, True}


def test_a_sweep_is_resumed_with_the_scheduler_that_was_given_last(where: Places) -> None:
    where.storage.mkdir()
    for scheduler in ("asha", "none", "median"):
        made = plan(where, "sweep=demo", f"scheduler={scheduler}")
        record_sweep(where.storage, made.sweep, made.trial_ids)
    assert [request.scheduler for request in read_sweep(where.storage, "demo").requests] == ["median"]
    searching = plan(where, *OPTUNA)
    record_sweep(where.storage, searching.sweep, searching.trial_ids)
    assert [request.search for request in read_sweep(where.storage, "demo").requests] == ["grid", "optuna"]
