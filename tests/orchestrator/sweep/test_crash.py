"""What the driver says and writes of workers that died, and what it prints to go on."""

from pathlib import Path

import pytest

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.places import Places, places
from cryobench.orchestrator.sweep.cluster_access import prepare_access
from cryobench.orchestrator.sweep.crash import record_failure
from cryobench.orchestrator.sweep.watcher import explain_crash
from cryobench.workers.record.folder import TrialFolder, all_trials


def test_a_worker_that_dies_before_its_folder_exists_fails_its_trial_alone(where: Places, one_trial) -> None:  # type: ignore[no-untyped-def]
    spec = one_trial()
    assert not (where.storage / "trials").exists()
    assert record_failure(where.storage, spec, "crashed", "died") == "died"
    folder = TrialFolder(where.storage, spec.trial_id)
    assert (folder.state().status, folder.state().kind, folder.state().message) == ("failed", "crashed", "died")
    assert not folder.state().waits_for_user
    assert [f.trial_id for f in all_trials(where.storage)] == [spec.trial_id]
    assert record_failure(where.storage, spec, "crashed", "another") == "died"  # what was recorded first stands


def test_an_error_in_a_worker_is_named_and_only_a_death_is_called_one() -> None:
    told = "Failure # 1 (occurred at 1)\nRayTaskError: x\nFailure # 2 (occurred at 2)\nTraceback …\nKeyError: 'lr'\n"
    assert explain_crash(told) == "the worker failed with: KeyError: 'lr'"
    died = "Failure # 1 (occurred at 1)\nThe actor died unexpectedly before finishing this task.\n"
    assert explain_crash(died).startswith("the worker process died")
    assert "died" in explain_crash(None)
    assert "ran low on memory" in explain_crash("Failure # 1\nkilled due to the node running low on memory.")


def test_ray_client_addresses_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"ray://h:10001: Ray Client addresses cannot run sweeps\. Give HOST:6379"):
        prepare_access("ray://h:10001")


def test_what_goes_on_names_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STORAGE", "DATA", "CACHE", "WEIGHTS"):
        monkeypatch.delenv(f"CRYOBENCH_{name}", raising=False)
    assert places("s", "d").options() == f"--storage {tmp_path}/s --data-dir {tmp_path}/d"
    options = places("a s", "d", "c", "w").options()
    assert options == (
        f"--storage '{tmp_path}/a s' --data-dir {tmp_path}/d --cache-dir {tmp_path}/c --weights-dir {tmp_path}/w"
    )
