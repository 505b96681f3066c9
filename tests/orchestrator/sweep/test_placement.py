"""Which nodes and which part of a GPU a trial gets, from nodes as Ray describes them; without a cluster."""

from pathlib import Path
from typing import Any

import pytest

from cryobench.conf.schema import ResourceSpec
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.failure_policy import FailurePolicy, Node
from cryobench.orchestrator.sweep.gpu_share import GpuShares, share_for
from cryobench.orchestrator.sweep.placement import Placement, placing
from cryobench.orchestrator.sweep.stopping import NoNodeLeft


def plain(number: int, gpus: float = 0, name: str = "", *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": 8.0} | ({"GPU": gpus} if gpus else {})
    return {
        "NodeID": f"{number:056x}"[::-1],
        "Alive": alive,
        "NodeName": name or f"node-{number}",
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerPort": 1,
        "Resources": resources,
    }


class Cluster:
    """Nodes that a test changes; every question is asked anew."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.plain, self.told = list(nodes), list[str]()
        self.nodes = ClusterNodes(lambda: self.plain, self.told.append)
        self.policy = FailurePolicy(3, self.nodes.alive)

    def look(self) -> None:
        self.nodes.alive(now=True)

    def placement(self, **resources: Any) -> Placement:
        return Placement(ResourceSpec(**resources), self.nodes, self.policy, GpuShares({}, Path("/nowhere")))

    def node(self, number: int) -> Node:
        return self.nodes.node(self.plain[number]["NodeID"])


@pytest.mark.parametrize(
    ("peak_mb", "device_mb", "share"),
    [(9_000, 81_559, 1 / 6), (30_000, 81_559, 0.5), (40_000, 81_559, 1.0), (100, 81_559, 1 / 8), (90_000, 81_559, 1.0)],
)
def test_shares_leave_a_margin_and_together_fit(peak_mb: float, device_mb: float, share: float) -> None:
    assert share_for(peak_mb, device_mb) == pytest.approx(share, abs=1e-4)
    together = int(1 / share_for(peak_mb, device_mb))
    assert together == 1 or together * peak_mb < device_mb


def test_gpus_are_asked_for_again_as_nodes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(plain(0))
    placement = cluster.placement()
    monkeypatch.setattr(GpuShares, "of", lambda self, trial: 0.5)
    assert placement.request("t").bundles == [{"CPU": 1.0}]
    cluster.plain.append(plain(1, gpus=8))
    cluster.look()
    assert placement.request("t").bundles == [{"CPU": 1.0, "GPU": 0.5}]
    assert placement.at_a_time() == 8
    assert cluster.placement(gpus_per_trial=0).request("t").bundles == [{"CPU": 1.0}]
    assert cluster.placement(gpus_per_trial=2).request("t").bundles == [{"CPU": 1.0, "GPU": 2.0}]


def test_sick_nodes_and_those_that_failed_a_trial_are_kept_from_it() -> None:
    cluster = Cluster(plain(0), plain(1), plain(2))
    placement = cluster.placement()
    placement.keep_from("t", [cluster.node(1).id])
    cluster.policy.avoid(cluster.node(2), "no space left")
    for trial, kept in (("t", [1, 2]), ("another", [2])):
        selector = placement.request(trial)._kwargs["bundle_label_selector"][0]["ray.io/node-id"]
        assert set(selector.removeprefix("!in(").removesuffix(")").split(",")) == {cluster.node(i).id for i in kept}
    assert "bundle_label_selector" not in placement.request("t", anywhere=True)._kwargs


def test_nodes_of_one_host_are_told_apart_and_coming_and_going_is_told() -> None:
    cluster = Cluster(plain(0x10, name="gpu"), plain(0x20, name="gpu"))
    cluster.look()
    names = {cluster.node(0).name, cluster.node(1).name}
    assert len(names) == 2
    assert all(name.startswith("gpu") for name in names)
    assert not cluster.told
    cluster.plain[0]["Alive"] = False
    cluster.look()
    assert cluster.told == [f"Node {cluster.node(0).name} is gone; 1 nodes left."]
    cluster.plain.append(plain(3))
    cluster.look()
    assert cluster.told[-1] == "Node node-3 joined; 2 nodes now."


def test_a_node_that_does_not_answer_is_not_there_although_ray_says_so() -> None:
    cluster = Cluster(plain(0))
    assert not cluster.nodes.is_there(cluster.node(0).id)  # nothing listens on port 1
    assert not cluster.nodes.is_there("unknown")


def test_the_sweep_stops_when_every_node_is_avoided_and_nothing_runs_and_waits_for_one_that_fits() -> None:
    cluster, said, running = Cluster(plain(0), plain(1)), list[str](), {"t"}
    placement = cluster.placement(gpus_per_trial=1)
    stopper = NoNodeLeft(cluster.nodes, cluster.policy, lambda: running, placement.needs, said.append)
    assert not stopper.stop_all()
    assert not said  # while something runs, nothing is waited for
    running.clear()
    assert not stopper.stop_all()
    assert not stopper.stop_all()
    assert len(said) == 1
    assert said[0].startswith("Waiting for a node on which a trial fits. A trial asks for 1 CPU and 1 GPU")
    for number in (0, 1):
        cluster.policy.avoid(cluster.node(number), "no space left")
    running.add("t")
    assert not stopper.stop_all()
    running.clear()
    assert stopper.stop_all()
    assert stopper.reason == ("No node is left that the sweep may use (node-0: no space left; node-1: no space left).")


class Controller:
    """Stands in for Tune's, as far as a scheduler asks it which trials there are."""

    def __init__(self) -> None:
        self.live: set[Any] = set()

    def get_live_trials(self) -> set[Any]:
        return self.live


class Live:
    """A trial as Tune has it."""

    def __init__(self, trial: str) -> None:
        self.trial_id, self.config, self.status = trial, {"trial": trial}, "PENDING"

    def update_resources(self, request: Any) -> None:
        self.request = request


def test_a_worker_that_is_free_gets_a_trial_for_which_none_is_being_started() -> None:
    cluster, controller = Cluster(plain(0)), Controller()
    scheduler = placing()(cluster.placement())
    first, second, third = trials = [Live(name) for name in "cba"]

    def add(*trials: Live) -> None:
        for trial in trials:
            controller.live.add(trial)
            scheduler.on_trial_add(controller, trial)

    def choose() -> Any:
        return scheduler.choose_trial_to_run(controller)

    add(first, second)
    assert choose() is first
    first.status = "RUNNING"
    assert choose() is second  # a worker is being started for it
    controller.live.remove(first)
    add(third)
    assert choose() is third
    third.status = "RUNNING"
    assert choose() is second
    third.status = "PENDING"  # failed, and comes up again
    assert choose() is third
    assert choose() is second  # the one that came first
    for trial in trials:
        trial.status = "RUNNING"
    assert choose() is None
    assert all(trial.request.bundles == [{"CPU": 1.0}] for trial in trials)
