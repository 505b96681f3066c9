"""What a trial asks for against what nodes have, without a cluster."""

from typing import Any

import pytest

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.sweep.capacity import (
    NodeCapacity,
    device_for_trial,
    gpus_for_trial,
    live_nodes,
    require_fit,
)


def node(name: str, cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    """One of ``ray.nodes()``; without a GPU the resource is not among them."""
    resources = {"CPU": cpus, "memory": 1e10} | ({"GPU": gpus} if gpus else {})
    return {"Alive": alive, "NodeName": name, "NodeManagerAddress": "10.0.0.1", "Resources": resources}


FOUR_OF_ONE = live_nodes([node(f"gpu-{i}", 8.0, 1.0) for i in range(4)])


def test_dead_nodes_hold_nothing() -> None:
    nodes = [node("a", 8, 1), node("b", 64, 8, alive=False), {"Alive": True, "NodeManagerAddress": "10.0.0.3"}]
    assert live_nodes(nodes) == [NodeCapacity("a", 8, 1), NodeCapacity("10.0.0.3", 0, 0)]


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 0), (8, 1), (0.5, 0.25), (8, 0)])
def test_a_trial_fits_on_one_node(cpus: float, gpus: float) -> None:
    require_fit(FOUR_OF_ONE, cpus, gpus)


def test_four_nodes_of_one_gpu_do_not_hold_a_trial_of_two() -> None:
    expected = (
        r"asks for 1 CPU and 2 GPU and must fit on one node; the largest of 4, gpu-0, has 8 CPU and 1 GPU. "
        r"Lower resources.gpus_per_trial, or add"
    )
    with pytest.raises(ConfigError, match=expected):
        require_fit(FOUR_OF_ONE, 1, 2)


def test_cpus_of_one_node_and_the_gpu_of_another_are_no_place() -> None:
    nodes = live_nodes([node("many-cores", 64), node("gpu", 4, 2)])
    require_fit(nodes, 64, 0)
    with pytest.raises(ConfigError, match=r"the largest of 2, gpu, has 4 CPU and 2 GPU. Lower resources.cpus_per_tr"):
        require_fit(nodes, 16, 1)
    with pytest.raises(ConfigError, match=r"largest of 2, many-cores, has 64 CPU and 0 GPU. Lower resources.cpus_per"):
        require_fit(nodes, 65, 0)
    with pytest.raises(ConfigError, match=r"Lower resources.cpus_per_trial and resources.gpus_per_trial"):
        require_fit(nodes, 65, 3)


def test_a_cluster_without_a_live_node_and_one_and_a_half_gpus_are_explained() -> None:
    with pytest.raises(ConfigError, match="no live node"):
        require_fit(live_nodes([node("a", 8, alive=False)]), 1, 0)
    with pytest.raises(ConfigError, match=r"gpus_per_trial=1.5: expected a part of one GPU"):
        require_fit(live_nodes([node("a", 8, 8)]), 1, 1.5)


def test_auto_is_one_gpu_where_any_live_node_has_one() -> None:
    assert gpus_for_trial("auto", FOUR_OF_ONE) == 1
    assert gpus_for_trial("auto", live_nodes([node("a", 8), node("b", 8, 2)])) == 1
    assert gpus_for_trial("auto", live_nodes([node("a", 8), node("b", 8, 2, alive=False)])) == 0
    assert gpus_for_trial(0, FOUR_OF_ONE) == 0
    assert gpus_for_trial(0.5, FOUR_OF_ONE) == 0.5


def test_a_trial_without_a_gpu_does_not_take_one() -> None:
    """Ray leaves CUDA_VISIBLE_DEVICES as it is for a trial of no GPU, so the device is named."""
    assert device_for_trial(0) == "cpu"
    assert device_for_trial(0.5) == device_for_trial(2) == "cuda"
