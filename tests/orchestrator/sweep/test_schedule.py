"""The order of a sweep's trials, and how long it takes on given nodes."""

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.store_info import read_info
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.leaderboard import Compaction, leaderboard_row, write_rows
from cryobench.orchestrator.sweep.expected_cost import CostBook
from cryobench.orchestrator.sweep.forecast import Durations, forecast
from cryobench.orchestrator.sweep.plan import Plan, make_plan
from cryobench.orchestrator.sweep.schedule import in_order
from cryobench.orchestrator.sweep.simulate import NodeKind, read_nodes, simulate
from cryobench.orchestrator.sweep.throughput import EFFICIENCY, MultiplyAdds, card_named, seconds_estimated
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.result import Cost, Provenance, TrialResult

GRID = (
    "sweep=demo",
    "encoders=[unet_small,s12_moco_small]",
    "datasets=[glid,caffe]",
    "regimes=[frozen,finetune]",
    "lr=[1e-3,1e-4]",
    "lr_search=null",
)


@pytest.fixture
def plan(where: Places) -> Plan:
    return make_plan(load_sweep(list(GRID)), where)


def record(
    where: Places, spec: TrialSpec, seconds: float, *, device: str = "cpu (x86_64)", memory: float = 500
) -> None:
    """A finished trial of ``spec`` that took so long, in the storage and its leaderboard."""
    folder = TrialFolder(where.storage, spec.trial_id)
    folder.write_spec(spec)
    tiles = 8 * spec.protocol.epochs * spec.protocol.crops_per_tile
    steps = tiles // spec.protocol.batch_size
    folder.write_result(
        TrialResult(
            trial_id=spec.trial_id,
            status="completed",
            epochs=spec.protocol.epochs,
            steps=steps,
            training_tiles=8,
            best_epoch=None,
            best_val_miou=None,
            test=None,
            classes=("a", "b"),
            final_weights="",
            best_weights=None,
            provenance=Provenance(
                weights="", store_digest="", data_origin="", code="", libraries={}, host="h", device=device
            ),
            cost=Cost(
                parameters=1,
                trained_parameters=1,
                gmacs=2.0,
                train_seconds=seconds / 2,
                total_seconds=seconds,
                seconds={},
                tiles_per_second=tiles / (seconds / 2),
                peak_memory_mb=memory,
            ),
        )
    )
    row = leaderboard_row(folder, "s", None)
    assert row is not None
    write_rows(where.storage, [row])
    Compaction(where.storage).run()


def test_neighbours_share_data_set_and_system_and_long_ones_come_first(plan: Plan) -> None:
    takes = {("glid", "unet_small"): 5.0, ("glid", "s12_moco_small"): 50.0, ("caffe", "unet_small"): 10.0}

    def seconds(spec: TrialSpec) -> float:
        base = takes.get((spec.dataset.name, spec.encoder.name), 1.0)
        return base * (3 if spec.regime.name == "finetune" else 1)

    ordered = in_order(plan.trials, seconds)
    assert sorted(map(id, ordered)) == sorted(map(id, plan.trials))
    groups = [(t.spec.dataset.name, t.spec.encoder.name) for t in ordered]
    assert list(dict.fromkeys(groups)) == [
        ("glid", "s12_moco_small"),
        ("caffe", "unet_small"),
        ("glid", "unet_small"),
        ("caffe", "s12_moco_small"),
    ]
    assert sum(a != b for a, b in pairwise(groups)) == 3  # no group is left and entered again
    for group in set(groups):
        regimes = [t.spec.regime.name for t, its in zip(ordered, groups, strict=True) if its == group]
        assert regimes == ["finetune"] * 2 + ["frozen"] * 2


def test_a_trial_that_was_begun_counts_by_what_is_left(plan: Plan) -> None:
    nearly = PlannedTrial(plan.trials[0].spec, "begun", epoch=plan.trials[0].spec.protocol.epochs - 1)
    assert in_order([nearly, plan.trials[1]], lambda spec: 10.0)[-1] is nearly


def test_longest_first_beats_the_plans_order_on_two_places(plan: Plan) -> None:
    durations = [1.0] * (len(plan.trials) - 1) + [10.0]
    takes = {t.spec.trial_id: d for t, d in zip(plan.trials, durations, strict=True)}

    def wall(trials: list[PlannedTrial]) -> float:
        node = NodeKind(card="CPU", cpus=2)
        return simulate(trials, [node], ResourceSpec(), lambda t, card: takes[t.spec.trial_id], start_s=0).wall_s

    ordered = in_order(plan.trials, lambda spec: takes[spec.trial_id])
    assert wall(ordered) < wall(list(plan.trials))


def test_recorded_trials_tell_of_others_with_more_epochs_and_other_rates(where: Places, plan: Plan) -> None:
    spec = plan.trials[0].spec
    record(where, spec, seconds=100.0, memory=1234)
    book = CostBook(where)
    other = next(t.spec for t in plan.trials if t.spec.regime == spec.regime and t.spec.lr != spec.lr)
    assert book.seconds(other) == pytest.approx(100.0)
    longer = other.model_copy(
        update={"protocol": other.protocol.model_copy(update={"epochs": 2 * spec.protocol.epochs})}
    )
    assert book.seconds(longer) == pytest.approx(200.0)
    assert book.memory_mb(other) == 1234
    assert book.seconds(next(t.spec for t in plan.trials if t.spec.dataset.name == "caffe")) is None


def test_the_forecast_counts_what_is_recorded(where: Places, plan: Plan) -> None:
    empty = forecast(plan.to_run(), CostBook(where))
    assert (empty.left, empty.known, empty.device, empty.memory_mb) == (16, 0, None, None)
    record(where, plan.trials[0].spec, seconds=3600.0, memory=1234)
    left = make_plan(load_sweep(list(GRID)), where).to_run()
    found = forecast(left, CostBook(where))
    assert (found.left, found.known, found.memory_mb) == (15, 1, 1234)
    assert found.hours == pytest.approx(1.0)
    assert found.shares == {}  # of processors


def test_the_forecast_says_how_gpus_are_shared(where: Places, plan: Plan) -> None:
    record(where, plan.trials[0].spec, seconds=3600.0, memory=20_000, device="NVIDIA H100 80GB HBM3")
    left = make_plan(load_sweep(list(GRID)), where).to_run()
    assert forecast(left, CostBook(where)).shares == {0.3333: 1}  # the other seed of that kind
    told = CliRunner().invoke(app, ["plan", *GRID, *where.options().split()]).output
    assert "GPUs a trial: 1 with 1/3, 14 begin with one, and are measured" in told


def test_durations_are_recorded_then_scaled_then_estimated(where: Places, plan: Plan) -> None:
    trials = list(plan.trials)
    on_a100 = trials[0].spec
    record(where, on_a100, seconds=100.0, device="NVIDIA A100-SXM4-80GB")
    durations = Durations(CostBook(where), MultiplyAdds(where.cache_dir))
    assert durations.known(trials, "A100") == trials
    assert durations.sources == {"recorded": 2, "estimated": 14}
    assert durations.seconds(trials[0], "A100") == pytest.approx(100.0)
    assert durations.seconds(trials[0], "H100") == pytest.approx(100.0 * 19.5 / 67)
    durations.known(trials, "H100")
    assert durations.sources == {"scaled": 2, "estimated": 14}
    other = trials[-1].spec
    info = read_info(where.store(other.dataset.name))
    gmacs = MultiplyAdds(where.cache_dir).of(other, info)  # from the file
    assert gmacs is not None
    tiles = CostBook(where).training_tiles(other)
    assert tiles is not None
    expected = seconds_estimated(other, tiles, info, gmacs, card_named("H100"))
    assert durations.seconds(trials[-1], "H100") == pytest.approx(expected)
    forwards = tiles * (3 if other.trains_encoder else 2)
    assert expected >= forwards * gmacs * 2e9 / (67e12 * EFFICIENCY)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("8xH100", [NodeKind(card="H100", gpus=8)]),
        ("2x8xh100", [NodeKind(card="H100", gpus=8, count=2)]),
        ("16xCPU,4xA100", [NodeKind(card="CPU", cpus=16), NodeKind(card="A100", gpus=4)]),
    ],
)
def test_nodes_are_read_from_words(text: str, nodes: list[NodeKind]) -> None:
    assert read_nodes(text) == nodes


def test_nodes_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("- {card: H100, gpus: 8, cpus: 96, count: 2}\n- {card: CPU, cpus: 4}\n")
    (tmp_path / "n.json").write_text(json.dumps([{"card": "H100", "gpus": 8, "cpus": 96, "count": 2}]))
    expected = NodeKind(card="H100", gpus=8, cpus=96, count=2)
    assert read_nodes(str(tmp_path / "n.yaml")) == [expected, NodeKind(card="CPU", cpus=4)]
    assert read_nodes(str(tmp_path / "n.json")) == [expected]


@pytest.mark.parametrize(("text", "said"), [("8", "8xH100"), ("8xG7", "No card 'G7'"), ("no.yaml", "No file no.yaml")])
def test_what_names_no_nodes_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_nodes(text)


@pytest.mark.parametrize(
    ("node", "resources", "places"),
    [
        (NodeKind(card="H100", gpus=8), {}, 8),
        (NodeKind(card="H100", gpus=8), {"gpus_per_trial": 0.5}, 16),
        (NodeKind(card="H100", gpus=8), {"gpus_per_trial": 3}, 2),
        (NodeKind(card="H100", gpus=8, cpus=6), {"cpus_per_trial": 2}, 3),
        (NodeKind(card="CPU", cpus=6), {"cpus_per_trial": 2}, 3),
    ],
)
def test_a_node_holds_as_many_trials_as_its_parts_allow(node: NodeKind, resources: dict[str, Any], places: int) -> None:
    assert node.at_once(ResourceSpec(**resources)) == places


def test_a_simulation_by_hand() -> None:
    found = simulate(
        [4.0, 3.0, 2.0, 1.0],
        [NodeKind(card="H100", gpus=2)],
        ResourceSpec(),
        lambda t, card: t,
        start_s=0,
        hand_out_s=0,
    )
    assert (found.wall_s, found.utilisation, found.longest_s) == (5.0, 1.0, 4.0)
    assert found.trial_hours == pytest.approx(10 / 3600)
    assert found.node_hours == pytest.approx(10 / 3600)
    with pytest.raises(ConfigError, match="No trial fits"):
        simulate([1.0], [NodeKind(card="CPU", cpus=1)], ResourceSpec(cpus_per_trial=2), lambda t, card: t)


def test_the_plan_command_simulates(where: Places, plan: Plan) -> None:
    record(where, plan.trials[0].spec, seconds=100.0)
    places = ["--storage", str(where.storage), "--data-dir", str(where.data_dir), "--cache-dir", str(where.cache_dir)]
    told = CliRunner().invoke(app, ["plan", *GRID, "--simulate", "2xCPU", "--json", *places])
    assert told.exit_code == 0, told.output
    plain = json.loads(told.output)
    assert plain["simulation"]["trials"] == 15
    assert plain["simulation"]["sources"] == {"recorded": 1, "estimated": 14}
    assert plain["forecast"]["known"] == 1
    told = CliRunner().invoke(app, ["plan", *GRID, "--simulate", "8xH100", *places])
    assert "wall time" in told.output
    assert "estimated from multiply-adds, at 35 % of the card's peak" in told.output
    told = CliRunner().invoke(app, ["plan", *GRID, *places])
    assert "to run: 15 trials; 0.0 CPU hours as recorded on cpu (x86_64), for 1 of 15 trials" in told.output
    assert "largest memory: 0.5 GB (unet_small · glid · frozen)" in told.output


@pytest.mark.slow
def test_a_real_run_takes_what_was_simulated(shared_ray: None, tmp_path: Path) -> None:
    """Sleeping trials under the driver's Tune: within 10 %."""
    from ray import tune

    durations = [4.0, 3.0, 3.0, 2.5, 2.5, 2.0, 2.0, 1.5, 1.0, 1.0, 1.0, 0.5]
    stamps = tmp_path / "stamps"
    stamps.mkdir()
    run_sleeping(durations, stamps, tune)
    times = [[float(t) for t in path.read_text().split()] for path in stamps.iterdir()]
    assert len(times) == len(durations)
    wall = max(end for _, end in times) - min(start for start, _ in times)
    node = NodeKind(card="CPU", cpus=2)
    found = simulate(durations, [node], ResourceSpec(), lambda t, card: t, start_s=0)
    assert wall == pytest.approx(found.wall_s, rel=0.1)


def run_sleeping(durations: list[float], stamps: Path, tune: Any) -> None:
    def sleep(config: dict[str, Any], done: Callable[[], None] | None = None) -> None:
        began = time.time()
        time.sleep(durations[config["trial"]])
        (stamps / str(config["trial"])).write_text(f"{began} {time.time()}")

    tuner = tune.Tuner(
        tune.with_resources(sleep, {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(range(len(durations))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name="sleep", storage_path=str(stamps.parent / "tune"), verbose=0),
    )
    tuner.fit()
