"""What a driver does with a rate that was suggested, before anybody runs it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import StorageError
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.attaching import take_sweep
from cryobench.orchestrator.sweep.plan import Plan, make_plan
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.suggestions import left_to_suggest, read_suggestions
from cryobench.orchestrator.sweep.tune_rounds import TuneRounds
from cryobench.orchestrator.sweep_record import SweepRecord, read_sweep, record_sweep
from cryobench.workers.record.events import AttemptStarted, EpochFinished, StoppedEarly
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.mirror import Mirror

pytest.importorskip("optuna")

ASKED = (
    "sweep=demo",
    "encoders=[unet_small]",
    "datasets=[glid]",
    "regimes=[finetune]",
    "lr=[1e-3]",
    "search=optuna",
    "lr_search={regimes:[finetune],lr:[1e-5,1e-1],samples:3}",
)


@dataclass
class Heard:
    """In place of reconciler and observer."""

    records: list[SweepRecord] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def follow(self, record: SweepRecord) -> None:
        self.records.append(record)

    def add(self, trial: str) -> None:
        self.added.append(trial)


def asked(where: Places, *more: str) -> Plan:
    return make_plan(load_sweep([*ASKED, *more]), where)


def rounds(plan: Plan, where: Places, mirror: Mirror | None = None) -> tuple[TuneRounds, Heard, Any]:
    heard, todo = Heard(), plan.to_run()
    specs = {t.spec.trial_id: t.spec for t in todo}
    console = Console(record=True, width=200)
    progress = SweepProgress(console, specs, {}, total=4, already=0, to_come=plan.to_suggest)
    record_sweep(where.storage, plan.sweep, plan.trial_ids)
    made = TuneRounds(plan, todo, where, None, progress, heard, mirror, heard)  # type: ignore[arg-type]
    assert made._search is not None
    return made, heard, made._search


def test_a_suggested_trial_is_on_disk_and_known_to_all_before_it_is_handed_out(where: Places) -> None:
    where.storage.mkdir()
    made, heard, search = rounds(asked(where), where)
    spec = search.next()
    assert [one.trial_id for one in read_suggestions(where.storage, "demo")] == [spec.trial_id]
    assert left_to_suggest(where.storage, "demo") == search.left == 2
    assert spec.trial_id in read_sweep(where.storage, "demo").trials
    assert made.progress.specs[spec.trial_id] == spec
    assert made._specs[spec.trial_id] == spec
    assert heard.added == [spec.trial_id]
    assert spec.trial_id in heard.records[-1].trials
    again = asked(where)  # a driver that is killed now leaves this behind
    assert spec.trial_id in {t.spec.trial_id for t in again.to_run()}
    assert again.to_suggest == 2


def test_it_is_in_the_object_store_too_or_not_handed_out(
    s3: str, where: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where.storage.mkdir()
    base, _, query = s3.partition("?")
    url = f"{base}/{tmp_path.name}?{query}"
    mirror = Mirror(url)
    made, heard, search = rounds(asked(where), where, mirror)
    real = Mirror.push_projections

    def away(self: Mirror, storage: Path) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(Mirror, "push_projections", away)
    assert search.next() is None
    assert heard.added == []
    monkeypatch.setattr(Mirror, "push_projections", real)
    spec = search.next()
    assert heard.added == [spec.trial_id]
    assert len(read_suggestions(where.storage, "demo")) == 1  # the same one, not a second
    elsewhere = replace(where, storage=tmp_path / "another machine", storage_url=url)
    found = asked(elsewhere)
    assert spec.trial_id in found.trial_ids
    assert found.to_suggest == 2
    assert spec.trial_id in read_sweep(elsewhere.storage, "demo").trials
    assert made.progress.to_come == 2


def test_studies_know_how_every_trial_of_their_cell_stands(where: Places) -> None:
    where.storage.mkdir()
    _, _, search = rounds(asked(where), where)
    first, second = search.next(), search.next()
    for spec, scores in ((first, (40.0, 55.0, 50.0)), (second, ())):
        folder = TrialFolder(where.storage, spec.trial_id)
        folder.write_spec(spec)
        folder.record(AttemptStarted(host="h", pid=1, device="cpu", code="x"))
        for number, score in enumerate(scores, 1):
            folder.record(EpochFinished(epoch=number, loss=1.0, lr=1e-3, seconds=1.0, val_miou=score))
        folder.record(StoppedEarly(epoch=len(scores), message="asha: behind"))
    _, _, again = rounds(asked(where, "scheduler=asha"), where)
    (study,) = again._studies
    assert study.known == {1e-3: "open", first.lr: 55.0, second.lr: "failed"}
    _, _, again = rounds(asked(where), where)  # without a scheduler they go on
    (study,) = again._studies
    assert study.known == {1e-3: "open", first.lr: "open", second.lr: "open"}


def test_whoever_takes_a_search_over_knows_what_was_suggested_meanwhile(where: Places) -> None:
    plan = asked(where)
    where.storage.mkdir()
    _, _, search = rounds(plan, where)
    spec = search.next()
    held, now = take_sweep(plan, where, None, lambda text: None)
    held.give_back()
    assert spec.trial_id not in plan.trial_ids
    assert spec.trial_id in now.trial_ids
    assert now.to_suggest == 2
