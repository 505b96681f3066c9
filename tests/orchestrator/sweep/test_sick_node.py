"""A node on which everything fails: it does not drain the queue, and the numbers are those of a healthy cluster."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sweeping import SMALL, Command, check_same_and_once, events

from cryobench.conf.errors import DiskFullError
from cryobench.workers.record.result import TrialResult


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes in this process; the id of the second."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    node = cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False)
    yield str(node.node_id)
    ray.shutdown()
    cluster.shutdown()


def sick_on(*nodes: str) -> Callable[..., TrialResult]:
    """What runs a trial, but for these nodes, whose disks are full."""

    def run(spec: Any, place: Any, **options: Any) -> TrialResult:
        import ray

        from cryobench.workers.trial import run_trial

        if ray.get_runtime_context().get_node_id() in nodes:
            raise DiskFullError("No space left while writing /scratch.")
        return run_trial(spec, place, **options)

    return run


def with_runner(run: Callable[..., TrialResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sweeps of this test run their trials by ``run``, which is sent to the workers by value."""
    from ray import cloudpickle

    from cryobench.orchestrator.sweep import trainable

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(trainable, "SweepTerms", partial(trainable.SweepTerms, run=run))


@pytest.mark.slow
def test_a_sick_node_is_named_and_avoided_and_its_trials_run_elsewhere(
    undisturbed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    import ray

    ray.shutdown()  # the one that the undisturbed sweep ran on
    sick = request.getfixturevalue("two_nodes")
    with_runner(sick_on(sick), monkeypatch)
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    told = command.run_here()
    assert "4 completed" in told
    assert "tried on another node" in told
    assert "gets no more trials of this sweep: No space left while writing /scratch." in told
    assert max(events(command.storage, "attempt").values()) == 1  # the sick node never began one
    check_same_and_once(command, undisturbed.storage)

    with_runner(sick_on(sick, ray.nodes()[0]["NodeID"], ray.nodes()[1]["NodeID"]), monkeypatch)
    hopeless = Command(tmp_path / "hopeless", undisturbed.data_dir, SMALL)
    told = hopeless.run_here(expect=1)
    assert "failed (disk_full: no space left): No space left while writing /scratch." in told
    assert "Stopped: No node is left that the sweep may use" in told
    assert "Then: cryobench resume demo --storage" in told
    assert len(events(hopeless.storage, "failed")) < 4  # the queue was not drained
