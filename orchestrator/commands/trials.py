"""trial run, trial show, trial eval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cryobench.orchestrator.commands.options import CacheDir, ConfigDir, DataDir, Json, Storage, WeightsDir
from cryobench.orchestrator.commands.output import console, print_json

if TYPE_CHECKING:
    from cryobench.conf.trial import TrialSpec
    from cryobench.orchestrator.places import Places

app = typer.Typer(help="Single trials.", no_args_is_help=True)


@app.command()
def run(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A spec.json, a trial id of this storage, or overrides that give one trial.",
            metavar="SPEC | OVERRIDES...",
        ),
    ],
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    config_dir: ConfigDir = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Run one trial in this process, without Ray: for debuggers, and for one number."""
    from cryobench.conf.errors import InterruptedTrialError
    from cryobench.orchestrator.places import places
    from cryobench.workers.record.events import (
        CheckpointDiscarded,
        Decoding,
        Diverged,
        EpochFinished,
        Event,
        Note,
        OutOfMemory,
        Resumed,
    )
    from cryobench.workers.termination import asked_to_leave, listening
    from cryobench.workers.trial import run_trial

    where = places(storage, data_dir, cache_dir, weights_dir, config_dir)
    spec, resources, trial_id = _find(what, where)
    console.print(f"Trial {trial_id}: {spec.label}", highlight=False)

    def report(event: Event) -> None:
        if isinstance(event, EpochFinished):
            score = "" if event.val_miou is None else f", validation mIoU {event.val_miou:.2f}"
            console.print(f"epoch {event.epoch}/{spec.protocol.epochs}: loss {event.loss:.4f}{score}", highlight=False)
        elif isinstance(event, Diverged) and event.message:
            console.print(f"diverged: {event.message}", highlight=False, markup=False, soft_wrap=True)
        elif isinstance(event, Resumed | Diverged):
            console.print(f"{event.event}: {event.epoch}", highlight=False)
        elif isinstance(event, CheckpointDiscarded):
            text = f"checkpoint discarded ({event.reason}); from the start again"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif isinstance(event, Decoding):
            console.print(f"decoding into the node cache: {event.decoded}/{event.tiles}", highlight=False)
        elif isinstance(event, Note):
            console.print(event.message, highlight=False, markup=False, soft_wrap=True)
        elif isinstance(event, OutOfMemory) and event.goes_on:
            console.print("out of memory: going on from the checkpoint, alone on the device", markup=False)
        elif isinstance(event, OutOfMemory):
            parts = event.micro_batches
            console.print(f"out of memory: from the start again, gradients from {parts} parts of a batch", markup=False)

    try:
        with listening():
            place = where.for_trials(resources, device)
            result = run_trial(spec, place, trial_id=trial_id, report=report, should_stop=asked_to_leave)
    except InterruptedTrialError as error:
        console.print(f"{error} Asked to leave; the same command goes on from there.", markup=False, soft_wrap=True)
        raise typer.Exit(143) from None
    score = (
        f"test mIoU {result.test.miou:.2f} ({result.test.miou_low:.2f} to {result.test.miou_high:.2f})"
        if result.test
        else "not tested"
    )
    console.print(f"{result.status}: {score}; {where.storage / 'trials' / trial_id}", highlight=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    trial_id: Annotated[str, typer.Argument(help="A finished trial of this storage.")],
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Test a trial's best checkpoint again; exit with 1 unless its result comes out the same."""
    from cryobench.conf.schema import ResourceSpec
    from cryobench.orchestrator.places import places
    from cryobench.workers.trial import retest_trial

    where = places(storage, data_dir, cache_dir, weights_dir)
    recorded, found = retest_trial(trial_id, where.for_trials(ResourceSpec(), device))
    apart = {
        name: (old, new)
        for (name, old), (_, new) in zip(recorded.model_dump().items(), found.model_dump().items(), strict=True)
        if old != new
    }
    for name, (old, new) in apart.items():
        console.print(f"{name}: recorded {old}, found {new}", highlight=False, markup=False, soft_wrap=True)
    verdict = "as recorded, bit for bit" if not apart else "not as recorded"
    console.print(f"{trial_id}: test mIoU {found.miou:.2f}, {verdict}", highlight=False)
    if apart:
        raise typer.Exit(1)


@app.command()
def show(
    trial_id: Annotated[str, typer.Argument(help="A trial id of this storage.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Show what is known of a trial: its spec, where it stands, its result."""
    from cryobench.orchestrator.places import places
    from cryobench.workers.record.folder import TrialFolder

    where = places(storage)
    where.bring_trials([trial_id])
    folder = TrialFolder(where.storage, trial_id)
    spec, state, result = folder.spec(), folder.state(), folder.result()
    if json:
        print_json(
            {
                "trial_id": trial_id,
                "state": state.status,
                "epoch": state.epoch,
                "kind": state.kind,
                "message": state.message,
                "spec": spec.model_dump(mode="json"),
                "result": result.model_dump(mode="json") if result else None,
                "epochs": [event.plain() for event in folder.epochs()],
            }
        )
        return
    console.print(Text.assemble((trial_id, "bold"), f" {spec.label}"), highlight=False)
    console.print(
        f"{state.status}, epoch {state.epoch} of {spec.protocol.epochs}"
        + (f": {state.message}" if state.message else ""),
        markup=False,
    )
    for event in folder.epochs():
        score = "" if event.val_miou is None else f", validation mIoU {event.val_miou:.2f}"
        console.print(f"  epoch {event.epoch}: loss {event.loss:.4f}, lr {event.lr:g}{score}", highlight=False)
    if result and result.test:
        for label, iou, f1 in zip(result.classes, result.test.iou, result.test.f1, strict=True):
            console.print(f"  {label}: IoU {iou:.2f}, F1 {f1:.2f}", highlight=False)
        console.print(
            f"  test mIoU {result.test.miou:.2f} ({result.test.miou_low:.2f} to {result.test.miou_high:.2f})",
            highlight=False,
        )
    console.print(f"  weights {spec.encoder.weights.provenance}, store {spec.dataset.store_digest}", highlight=False)
    console.print(f"  {folder.path}", highlight=False, soft_wrap=True)


def _find(what: list[str], where: Places) -> tuple[TrialSpec, Any, str]:
    """The trial that is asked for, its resources, and its id: its folder's name, where it was named by that."""
    from cryobench.conf.compose import load_sweep
    from cryobench.conf.errors import ConfigError
    from cryobench.conf.schema import ResourceSpec
    from cryobench.orchestrator.sweep.plan import make_plan
    from cryobench.workers.record.folder import TrialFolder, read_spec

    if len(what) == 1 and "=" not in what[0]:
        path = Path(what[0])
        if path.suffix == ".json":
            if not os.path.isfile(path):  # false also for what no path can be
                raise ConfigError(f"No file {path}. Expected a trial's spec.json.")
            spec = read_spec(path)
            return spec, ResourceSpec(), spec.trial_id
        where.bring_trials([what[0]])
        folder = TrialFolder.find(where.storage, what[0])
        where.bring_trials([folder.trial_id])
        return folder.spec(), ResourceSpec(), folder.trial_id
    sweep = load_sweep(what, where.config_dir)
    trials = make_plan(sweep, where).trials
    if len(trials) != 1:
        raise ConfigError(
            f"These overrides give {len(trials)} trials, expected one. Name one of each, "
            "e.g. encoder=unet dataset=glid regime=frozen lr=1e-4 lr_search=null."
        )
    if trials[0].provisional:
        raise ConfigError(trials[0].message or "The trial cannot run.")
    return trials[0].spec, sweep.resources, trials[0].spec.trial_id
