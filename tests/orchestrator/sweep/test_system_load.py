"""What is measured beside a trial: its load, and Ray's metrics."""

import importlib.util
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cryobench.orchestrator.results.reading import TrialReading
from cryobench.orchestrator.results.system_metrics import load_metrics, loads_of
from cryobench.orchestrator.results.tracking import Tracker, default_uri
from cryobench.orchestrator.sweep.prometheus import TrialGauge, WorkerGauges
from cryobench.orchestrator.sweep.system_load import LoadSampler
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Finished, Note, SystemLoad
from cryobench.workers.record.files import append_line, read_lines
from cryobench.workers.record.folder import TrialFolder

STARTED = AttemptStarted(host="here", pid=1, device="cpu", code="0.1")


def wait_for_load(folder: TrialFolder) -> None:
    deadline = time.monotonic() + 60
    while not loads_of(folder.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_load_is_sampled_while_a_trial_runs(tmp_path: Path) -> None:
    import platform

    folder = TrialFolder(tmp_path, "t")
    folder.path.mkdir(parents=True)
    folder.record(STARTED)
    with LoadSampler(folder, gpu=False, sample_s=0.1):
        wait_for_load(folder)
    count = len(folder.events())
    time.sleep(0.5)
    assert len(folder.events()) == count  # nothing is written once it is over
    event = loads_of(folder.events())[0]
    assert event.node == platform.node()
    assert {"cpu_utilization_percentage", "system_memory_usage_percentage", "process_memory_megabytes"} <= set(
        event.values
    )
    assert 0 < event.values["system_memory_usage_percentage"] <= 100
    assert event.values["process_memory_megabytes"] > 10
    assert folder.state().status == "begun"


def test_a_trial_that_is_over_soon_loads_no_library_and_leaves_no_sample(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "t")
    with LoadSampler(folder, gpu=False):
        pass
    assert not folder.path.exists()


def test_a_monitor_that_fails_is_told_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gpu: bool) -> Any:
        raise RuntimeError("no such counter")

    monkeypatch.setattr("cryobench.orchestrator.sweep.system_load._monitors", broken)
    folder = TrialFolder(tmp_path, "t")
    folder.path.mkdir(parents=True)
    folder.record(STARTED)
    with LoadSampler(folder, gpu=False, sample_s=0.02):
        time.sleep(0.4)
    notes = [event.message for event in folder.events() if isinstance(event, Note)]
    assert notes == ["The load is not sampled any more (RuntimeError: no such counter)."]


def test_only_a_trials_own_gpus_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryobench.orchestrator.sweep.system_load import _collect

    class Monitor:
        def clear_metrics(self) -> None: ...
        def collect_metrics(self) -> None: ...
        def aggregate_metrics(self) -> dict[str, float]:
            return {"gpu_0_utilization_percentage": 1, "gpu_3_utilization_percentage": 2, "cpu": 3}

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert _collect([Monitor()]) == {"gpu_3_utilization_percentage": 2, "cpu": 3}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a1b")
    assert len(_collect([Monitor()])) == 3


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=lambda n=n: [append_line(path, {"n": n, "i": i}) for i in range(40)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert path.read_text().count("\n") == 160  # no line was taken for torn and ended
    assert sorted((line["n"], line["i"]) for line in read_lines(path)) == [(n, i) for n in range(4) for i in range(40)]


def test_the_load_comes_to_mlflow_once_with_its_node_and_times(where: Any, one_trial: Any) -> None:
    spec = one_trial()
    folder = TrialFolder(where.storage, spec.trial_id)
    folder.write_spec(spec)
    folder.record(STARTED)
    folder.record(SystemLoad(node="a", values={"cpu_utilization_percentage": 10.0}))

    def project(tracker: Tracker) -> str | Exception:
        return tracker.project([TrialReading(where.storage, spec.trial_id)])[spec.trial_id]

    tracker = Tracker(default_uri(where.storage), where.storage, "s")
    run_id = project(tracker)
    folder.record(SystemLoad(node="b", values={"cpu_utilization_percentage": 20.0}))
    assert project(tracker) == run_id
    tracker.save()
    assert project(Tracker(default_uri(where.storage), where.storage, "s")) == run_id
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(where.storage))
    history = client.get_metric_history(str(run_id), "system/cpu_utilization_percentage")
    samples = loads_of(folder.events())
    assert [(m.value, m.timestamp, m.step) for m in history] == [
        (value, when, step) for _, value, when, step in load_metrics(samples, 0)
    ]
    assert client.get_run(str(run_id)).data.tags["node"] == "b"


def test_gauges_without_ray_do_nothing(one_trial: Any) -> None:
    TrialGauge("s").show({"running": 1})
    gauges = WorkerGauges(one_trial(), lambda: None)
    gauges.tell(EpochFinished(epoch=1, loss=1.0, lr=1.0, seconds=1.0, tiles=8))
    gauges.tell(Finished(status="completed"))
    gauges.close()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None,
    reason="Ray exports metrics with its extra packages alone: pip install '.[metrics]'",
)
def test_prometheus_reads_a_sweeps_numbers_from_rays_port(one_trial: Any) -> None:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 1024 * 1024,
        _metrics_export_port=port,
    )
    try:
        TrialGauge("demo").show({"running": 3, "completed": 5})
        epoch = EpochFinished(epoch=1, loss=1.0, lr=1.0, seconds=2.0, tiles=16)
        WorkerGauges(one_trial(), lambda: 1 << 30).tell(epoch)
        found: dict[str, str] = {}
        deadline = time.monotonic() + 60
        while len(found) < 4 and time.monotonic() < deadline:
            time.sleep(1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            found = {
                line.rpartition(" ")[0]: line.rpartition(" ")[2]
                for line in text.splitlines()
                if line.startswith("ray_cryobench_")
            }
    finally:
        ray.shutdown()

    def value(*parts: str) -> float:
        (one,) = [found[key] for key in found if all(part in key for part in parts)]
        return float(one)

    assert value("ray_cryobench_trials{", 'state="running"', 'sweep="demo"') == 3
    assert value("ray_cryobench_trials{", 'state="completed"') == 5
    assert value("ray_cryobench_tiles_per_second{", 'encoder="unet_small"', 'dataset="glid"') == 8
    assert value("ray_cryobench_gpu_memory_bytes{") == 1 << 30
