"""What running a trial costs beside the training itself: milliseconds a trial, ours and other ways side by side.

Each trial writes what a real one does (spec, an event for each of 80 epochs, two pictures, result) but trains nothing.
Ours goes through the real driver, without MLflow, with SQLite, an MLflow server and PostgreSQL. The others only run the
trials: plain Ray actors, Ray Tune by its defaults, one process a trial. All run two trials at a time. Counted is the
time from the first trial's beginning until the last one stands in leaderboard and MLflow; what comes before is the
start. Ways that take seconds a trial are run for the smallest number alone.

Usage: python benchmarks/orchestration.py [--trials 100,1000,5000] [--epochs 80] [--only none,sqlite,...] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from support.servers import local_postgres, mlflow_server, why_no_postgres

from cryobench.conf.schema import SweepSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Event, Finished
from cryobench.workers.record.folder import CONFUSION_PICTURE, SAMPLES_PICTURE, TrialFolder, all_trials
from cryobench.workers.record.lease import leased
from cryobench.workers.record.result import Cost, Provenance, TestMetrics, TrialResult

TRACKED = ("none", "sqlite", "server", "postgresql")
#: Other ways than ours, and whether they are run for the smallest number of trials alone.
OTHERS = {"ray_actors": False, "tune_defaults": True, "processes": True}
PICTURE = bytes(50_000)


def no_op_trial(
    spec: TrialSpec, place: Place, *, trial_id: str | None = None, report: Callable[[Event], None], **_: Any
) -> TrialResult:
    """What `run_trial` leaves behind and reports, without training."""
    folder = TrialFolder(place.storage, trial_id or spec.trial_id)
    folder.write_spec(spec)
    report(folder.record(AttemptStarted(host="node", pid=os.getpid(), device="cpu", code="0")))
    for epoch in range(1, spec.protocol.epochs + 1):
        scores = (epoch / 2,) * 3 if epoch % spec.protocol.eval_every == 0 else (None,) * 3
        names = ("val_miou", "val_mean_f1", "val_overall_accuracy")
        scored = dict(zip(names, scores, strict=True))
        report(folder.record(EpochFinished(epoch=epoch, loss=1 / epoch, lr=spec.lr, seconds=1.0, **scored)))
    for name in (SAMPLES_PICTURE, CONFUSION_PICTURE):
        (folder.path / name).write_bytes(PICTURE)
    result = made_up_result(folder.trial_id, spec)
    folder.write_result(result)
    report(folder.record(Finished(status="completed")))
    return result


def our_no_op_trial(spec: TrialSpec, place: Place, *, trial_id: str, **options: Any) -> TrialResult:
    """The same under the trial's lease, which ours takes and the other ways have nothing like."""
    with leased(TrialFolder(place.storage, trial_id).lease_file(), f"Trial {trial_id}"):
        return no_op_trial(spec, place, trial_id=trial_id, **options)


def made_up_result(trial: str, spec: TrialSpec) -> TrialResult:
    """A whole result of two classes."""
    two = (90.0, 50.0)
    scores: dict[str, Any] = {"miou": 70.0, "mean_f1": 80.0, "overall_accuracy": 95.0, "miou_low": 69, "miou_high": 71}
    test = TestMetrics(iou=two, f1=two, precision=two, recall=two, **scores)
    libraries = {"torch": "2"}
    origin = Provenance(
        weights="random", store_digest="0", data_origin="none", code="0", libraries=libraries, host="node", device="cpu"
    )
    cost: dict[str, Any] = {"parameters": 1, "trained_parameters": 1, "gmacs": 1.0, "train_seconds": 1.0}
    cost |= {"total_seconds": 1.0, "seconds": {}, "tiles_per_second": 1.0, "peak_memory_mb": 1.0}
    return TrialResult(
        trial_id=trial,
        status="completed",
        epochs=spec.protocol.epochs,
        steps=1,
        training_tiles=1,
        best_epoch=1,
        best_val_miou=40.0,
        test=test,
        classes=("background", "lake"),
        final_weights="0",
        best_weights=None,
        provenance=origin,
        cost=Cost(**cost),
    )


def silent_trial(plain: dict[str, Any], storage: Path) -> None:
    """One trial of the ways that are not ours."""
    no_op_trial(TrialSpec.model_validate(plain), Place(storage, storage, storage), report=lambda event: None)


def run_ours(data: Path, storage: Path, trials: int, epochs: int, uri: str | None) -> float:
    """A sweep from its configuration to its leaderboard; the seconds that planning took."""
    from rich.console import Console

    from cryobench.orchestrator.places import Places
    from cryobench.orchestrator.sweep import trainable
    from cryobench.orchestrator.sweep.driver import run_sweep
    from cryobench.orchestrator.sweep.plan import make_plan

    began = time.monotonic()
    plan = make_plan(asked_for(trials, epochs), Places(storage, data, data / "cache", data))
    planned = time.monotonic() - began
    trainable.SweepTerms = partial(trainable.SweepTerms, run=our_no_op_trial)
    with (storage.parent / "console.txt").open("w") as file:
        where = Places(storage, data, data / "cache", data)
        outcome = run_sweep(plan, where, Console(file=file), uri=uri)
    if outcome.counts != {"completed": trials} or not outcome.tracked:
        raise SystemExit(f"{storage}: expected {trials} completed and tracked trials, found {outcome}.")
    return planned


def run_actors(specs: list[dict[str, Any]], storage: Path) -> None:
    """Two actors that are handed the trials by `ray.util.ActorPool`."""
    import ray
    from ray.util import ActorPool

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    class Actor:
        def run(self, plain: dict[str, Any]) -> None:
            silent_trial(plain, storage)

    pool = ActorPool([ray.remote(num_cpus=1)(Actor).remote() for _ in range(2)])
    for _ in pool.map_unordered(lambda actor, plain: actor.run.remote(plain), specs):
        pass
    ray.shutdown()


def run_tune(specs: list[dict[str, Any]], storage: Path) -> None:
    """A function trainable with all that Tune does by default, reporting every epoch."""
    import ray
    from ray import tune

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def train(config: dict[str, Any]) -> None:
        spec = TrialSpec.model_validate(config["plain"])
        no_op_trial(spec, Place(storage, storage, storage), report=lambda event: tune.report(event.plain()))

    tune.Tuner(
        train,
        param_space={"plain": tune.grid_search(specs)},
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=str(storage.parent / "tune"), verbose=0),
    ).fit()
    ray.shutdown()


def run_processes(specs: list[dict[str, Any]], storage: Path) -> None:
    """A process a trial, two at a time, each with the imports of a real one."""
    running: list[subprocess.Popen[bytes]] = []
    for plain in specs:
        while len(running := [process for process in running if process.poll() is None]) == 2:
            time.sleep(0.01)
        command = [sys.executable, __file__, "--trial", json.dumps(plain), "--storage", str(storage)]
        running.append(subprocess.Popen(command))
    for process in running:
        process.wait()


def measure_here(way: str, data: Path, storage: Path, trials: int, epochs: int, uri: str | None) -> dict[str, float]:
    """Run ``trials`` trials one way in this process, which is the driver, and say what they took."""
    began, planned = time.time(), 0.0
    if way in TRACKED:
        planned = run_ours(data, storage, trials, epochs, uri)
    else:
        specs = [spec.model_dump(mode="json") for spec in some_specs(data, storage, trials, epochs)]
        {"ray_actors": run_actors, "tune_defaults": run_tune, "processes": run_processes}[way](specs, storage)
    ended = time.time()
    folders = all_trials(storage)
    if len(folders) != trials or not all((folder.path / "result.json").exists() for folder in folders):
        raise SystemExit(f"{way}: expected {trials} whole trials in {storage}.")
    first = min(folder.events()[0].time for folder in folders)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": 1000 * (ended - first) / trials,
        "driver_cpu_ms": 1000 * (usage.ru_utime + usage.ru_stime) / trials,
        "driver_memory_mb": usage.ru_maxrss / 1024,
        "plan_s": planned,
        "start_s": first - began,
    }


def some_specs(data: Path, storage: Path, trials: int, epochs: int) -> list[TrialSpec]:
    """The trials of `run_ours`."""
    from cryobench.orchestrator.places import Places
    from cryobench.orchestrator.sweep.plan import make_plan

    plan = make_plan(asked_for(trials, epochs), Places(storage, data, data / "cache", data))
    return [trial.spec for trial in plan.trials]


def asked_for(trials: int, epochs: int) -> SweepSpec:
    """A sweep of so many trials: learning rates, and seeds of each, of which a sweep takes a thousand."""
    from cryobench.conf.compose import load_sweep

    rates = -(-trials // 1000)
    if trials % rates:
        raise SystemExit(f"--trials {trials}: expected a multiple of {rates}, for as many learning rates.")
    asked = ["sweep=demo", "datasets=[glid]", "lr_search=null", f"protocol.epochs={epochs}", "protocol.eval_every=5"]
    asked += ["encoders=[unet_small]", "regimes=[frozen]", "resources.max_concurrent=2"]
    asked += [f"lr={[1e-3 / 2**number for number in range(rates)]}", f"seeds={list(range(trials // rates))}"]
    return load_sweep(asked)


def measure(way: str, data: Path, folder: Path, trials: int, epochs: int, uri: str | None) -> dict[str, float]:
    """The same in a process of its own, whose memory and CPU time are the driver's alone."""
    command = [sys.executable, __file__, "--one", way, "--data", str(data), "--storage", str(folder / "storage")]
    command += ["--trials", str(trials), "--epochs", str(epochs), *(["--uri", uri] if uri else [])]
    folder.mkdir(parents=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-4000:]
        raise SystemExit(f"{way} with {trials} trials failed ({done.returncode}):\n{said}")
    shutil.rmtree(folder)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_all(ways: list[str], counts: list[int], epochs: int) -> dict[str, Any]:
    """All ways for all numbers of trials."""
    from cryobench.conf.compose import load_dataset
    from cryobench.datasets.store.convert import convert
    from cryobench.datasets.synth.generate import fitted, generate

    found: dict[str, dict[int, dict[str, float]]] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="cryobench-bench-") as name:
        folder = Path(name)
        generate("glid", folder / "raw", tiles=(4, 1, 1), size=64)
        convert(fitted(load_dataset("glid"), 64), folder / "raw", folder / "data" / "glid.zarr")
        for way in ways:
            if way == "postgresql" and (why := why_no_postgres()):
                skipped[way] = why
                continue
            for count in counts[:1] if OTHERS.get(way) else counts:
                with ExitStack() as stack:
                    place = folder / f"{way}-{count}"
                    uri = _tracking(way, folder / f"{way}-{count}-tracking", place, stack)
                    found.setdefault(way, {})[count] = measure(way, folder / "data", place, count, epochs, uri)
                print(f"{way} {count}: {found[way][count]}", file=sys.stderr)
    ours = {way: found[way] for way in TRACKED if way in found}
    others = {way: found[way] for way in OTHERS if way in found}
    return {
        "ours": {way: _of(by_count, "ms") for way, by_count in ours.items()},
        **{way: _of(by_count, "ms") for way, by_count in others.items()},
        "growth": {way: by[counts[-1]]["ms"] / by[counts[0]]["ms"] for way, by in ours.items()},
        "driver": {
            way: {what: _of(by, what) for what in ("driver_cpu_ms", "driver_memory_mb", "plan_s", "start_s")}
            for way, by in ours.items()
        },
        "skipped": skipped,
        "epochs": epochs,
        "cpus": os.cpu_count(),
    }


def _tracking(way: str, folder: Path, place: Path, stack: ExitStack) -> str | None:
    """The tracking URI of a way, with what serves it started."""
    if way == "sqlite":
        return f"sqlite:///{place / 'storage' / 'mlflow.db'}"
    if way not in ("server", "postgresql"):
        return None
    folder.mkdir(parents=True)
    return stack.enter_context(mlflow_server(folder) if way == "server" else local_postgres(folder))


def _of(by_count: dict[int, dict[str, float]], what: str) -> dict[str, float]:
    return {str(count): found[what] for count, found in by_count.items()}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,1000,5000", help="numbers of trials, the smallest first")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--only", default=",".join((*TRACKED, *OTHERS)), help="some of the ways")
    parser.add_argument("--json", action="store_true")
    for internal in ("--one", "--data", "--storage", "--uri", "--trial"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        silent_trial(json.loads(options.trial), Path(options.storage))
        return
    if options.one:
        data, storage = Path(options.data), Path(options.storage)
        print(json.dumps(measure_here(options.one, data, storage, int(options.trials), options.epochs, options.uri)))
        return
    ways = options.only.split(",")
    if unknown := set(ways) - {*TRACKED, *OTHERS}:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; expected some of {', '.join((*TRACKED, *OTHERS))}")
    result = measure_all(ways, sorted(map(int, options.trials.split(","))), options.epochs)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['epochs']} epochs a trial, {result['cpus']} CPUs; milliseconds a trial by number of trials:")
    rows = {**{f"ours, MLflow {way}": ms for way, ms in result["ours"].items()}}
    rows |= {way: result[way] for way in OTHERS if way in result}
    for way, by_count in rows.items():
        line = ", ".join(f"{count}: {ms:.0f}" for count, ms in by_count.items())
        alone = " (larger numbers not run; it does not depend on them)" if OTHERS.get(way) else ""
        print(f"  {way:24} {line}{alone}")
    for way, driver in result["driver"].items():
        print(f"  driver, MLflow {way}: {result['growth'][way]:.2f} times as long a trial with the most trials;")
        for what, by_count in driver.items():
            print(f"    {what}: " + ", ".join(f"{count}: {value:.1f}" for count, value in by_count.items()))
    for way, why in result["skipped"].items():
        print(f"  {way} was left out: {why}")


if __name__ == "__main__":
    main()
