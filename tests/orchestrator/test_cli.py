"""The command answers at once, in plain words, and imports what is heavy only where it is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cryobench.orchestrator.formatting import duration

ENTRY = "from cryobench.orchestrator.cli import main; main()"


def cryobench(*arguments: str, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=cwd
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("plan", "sweep=full", "--json"),
        ("data", "list"),
        ("encoders", "list"),
        ("data", "info", "glid"),
    ],
)
def test_listings_import_nothing_heavy(tmp_path: Path, data_dir: Path, arguments: tuple[str, ...]) -> None:
    """Speed is measured in benchmarks; here, what would make it slow: torch, ray, mlflow, zarr."""
    where = () if "--help" in arguments or arguments[0] == "encoders" else ("--data-dir", str(data_dir))
    program = (
        "import sys\nfrom cryobench.orchestrator.cli import main\n"
        f"sys.argv = ['cryobench', *{[*arguments, *where]!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'ray', 'mlflow', 'zarr', 'matplotlib', 'rasterio', 'duckdb'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert "AssertionError" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_help_imports_no_configuration_library() -> None:
    program = (
        "import sys\nfrom cryobench.orchestrator.cli import main\nsys.argv = ['cryobench', '--help']\n"
        "try:\n    main()\nfinally:\n    assert not {'hydra', 'pydantic', 'numpy'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False).returncode == 0


def test_an_error_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    done = cryobench("plan", "sweep=nothing", expect=2, cwd=tmp_path)
    assert done.stderr.startswith("Error: Unknown sweep 'nothing'. Known: demo, full")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "info", "gild"), "Unknown dataset 'gild'"),
        (("data", "info", "glid"), "No tile store"),
        (
            ("data", "prepare", "glid", "--source", "nowhere"),
            "nowhere does not exist. Expected the unpacked folder of 'glid'",
        ),
        (("data", "prepare", "sicd", "--source", "."), "holds no edition of 'sicd' that is known. geotiff: "),
        (("data", "synth", "debris"), "Unknown generated data set 'debris'. Known: caffe, gld, glid, gsdd, sicd"),
        (("resume", "demo"), "Unknown sweep on this storage 'demo'"),
        (("leaderboard",), "No leaderboard at"),
        (("ui",), "No MLflow database under"),
        (("trial", "run", "0123456789abcdef"), "No trial at"),
        (("trial", "run", "missing.json"), "No file missing.json"),
        (("trial", "run", "sweep=demo"), "These overrides give 24 trials, expected one"),
        (("trial", "show", "0123456789abcdef"), "No trial at"),
        (("encoders", "check", "--golden", "nowhere"), "--golden nowhere is not a folder"),
        (("plan", "--config-dir", "nowhere"), "is not a folder"),
        (("plan", "--storage", "ftp://host/x"), "Expected a local folder or a URL such as s3://bucket/folder"),
        (("plan", "--data-dir", "ftp://host/x"), "Expected a local folder or a URL such as s3://bucket/folder"),
        (("data", "synth", "glid", "--data-dir", "s3://b/x?region=eu"), "data sets are prepared in a local folder"),
        (("plan", "--cache-dir", "s3://bucket/x"), "only --storage and --data-dir may be URLs"),
    ],
)
def test_wrong_requests_are_explained(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_data_commands_make_show_and_verify_a_store(tmp_path: Path) -> None:
    cryobench("data", "synth", "caffe", "--tiles", "4", "2", "2", "--size", "48", cwd=tmp_path)
    store = tmp_path / "cryobench-data" / "caffe.zarr"
    info = json.loads(cryobench("data", "info", "caffe", "--json", cwd=tmp_path).stdout)
    assert info["splits"]["train"]["tiles"] == 4
    assert info["origin"] == "generated (seed 234, 48 px)"
    assert "ocean and ice melange" in cryobench("data", "info", "caffe", cwd=tmp_path).stdout
    assert "whole, digest" in cryobench("data", "verify", "caffe", cwd=tmp_path).stdout
    listed = json.loads(cryobench("data", "list", "--json", cwd=tmp_path).stdout)["datasets"]
    assert {row["name"]: row["state"] for row in listed}["caffe"] == "prepared"
    chunk = store / "val" / "mask" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    done = cryobench("data", "verify", "caffe", expect=1, cwd=tmp_path)
    assert "tile 1 of val/mask" in done.stdout
    assert "1 problems found" in done.stderr


def test_generated_data_never_replaces_real_data(tmp_path: Path, raw_glid: Path) -> None:
    import shutil

    shutil.copytree(raw_glid, tmp_path / "real")
    (tmp_path / "real" / "ORIGIN.txt").unlink()
    cryobench("data", "prepare", "glid", "--source", "real", cwd=tmp_path)
    done = cryobench("data", "synth", "glid", expect=1, cwd=tmp_path)
    assert "holds real data" in done.stderr


def test_one_trial_in_this_process_and_what_is_known_of_it(tmp_path: Path, data_dir: Path) -> None:
    overrides = ("encoder=unet_small", "dataset=glid", "regime=frozen", "protocol.epochs=2", "protocol.eval_every=1")
    told = cryobench("trial", "run", *overrides, "--data-dir", str(data_dir), cwd=tmp_path).stdout
    assert "epoch 2/2: loss" in told
    assert "completed: test mIoU" in told
    trial_id = told.split()[1].rstrip(":")
    known = json.loads(cryobench("trial", "show", trial_id, "--json", cwd=tmp_path).stdout)
    assert known["state"] == "completed"
    assert known["result"]["test"]["miou"] > 0
    assert "lake: IoU" in cryobench("trial", "show", trial_id, cwd=tmp_path).stdout
    cryobench("sync", "--tracking-uri", "none", cwd=tmp_path)
    for form in ("table", "markdown", "csv", "json"):
        assert "unet_small" in cryobench("leaderboard", "--format", form, cwd=tmp_path).stdout or form in (
            "table",
            "markdown",
        )
    table = cryobench("leaderboard", cwd=tmp_path).stdout
    assert "U-Net small (from scratch)" in table
    assert "generated: these are not benchmark results" in table
    plain = json.loads(cryobench("leaderboard", "--json", cwd=tmp_path).stdout)
    assert plain["tables"][0]["encoders"][0]["avg_rank"] == 1
    cryobench("leaderboard", "--format", "parquet", "-o", "out.parquet", cwd=tmp_path)
    assert (tmp_path / "out.parquet").read_bytes().startswith(b"PAR1")
    assert "needs --output" in cryobench("leaderboard", "--format", "parquet", expect=2, cwd=tmp_path).stderr


def test_encoders_check_ends_in_failure_on_a_deviation(tmp_path: Path) -> None:
    from cryobench.encoders.golden import GOLDEN_DIR, read_golden

    good = read_golden(GOLDEN_DIR / "unet.json")
    (tmp_path / "unet.json").write_text(json.dumps(good))
    assert "ok" in cryobench("encoders", "check", "--golden", str(tmp_path)).stdout
    good["outputs"][0]["samples"][0][1] += 1.0
    (tmp_path / "unet.json").write_text(json.dumps(good))
    assert "deviates" in cryobench("encoders", "check", "--golden", str(tmp_path), expect=1).stdout


def test_encoders_list_tells_what_is_here(tmp_path: Path) -> None:
    rows = json.loads(cryobench("encoders", "list", "--json", cwd=tmp_path).stdout)["encoders"]
    found = {(row["encoder"], row["variant"]): row for row in rows}
    assert found["vit", "own"]["weights"] == "trained from scratch"
    assert found["s12_mae", "sar"]["weights"] == "missing"
    assert found["s12_mae", "sar"]["bands"] == {"sar": ["VV", "VH"]}
    assert all(row["built"] for row in rows)
    assert len({row["encoder"] for row in rows}) >= 16


@pytest.mark.parametrize(
    ("seconds", "told"), [(42.4, "42 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (183_600, "2 d 3 h")]
)
def test_durations_for_people(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_explain_says_in_words_what_is_fed(tmp_path: Path) -> None:
    told = cryobench("encoders", "explain", "dofa", "gld", cwd=tmp_path).stdout
    assert "optical B2: B2\n" in told
    assert "optical B8A: thermal, which the reference feeds under this name\n" in told
    assert "dropped: coherence" in told
    told = cryobench("encoders", "explain", "gfm_swin", "caffe", cwd=tmp_path).stdout
    assert "optical B3: VV again, radar standing in for colour" in told
    told = cryobench("encoders", "explain", "s12_moco", "glid", cwd=tmp_path).stdout
    assert "optical B1: zero after normalisation; the data set has no such band" in told
    lines = json.loads(cryobench("encoders", "explain", "dofa", "gld", "--view", "actual", "--json").stdout)["lines"]
    assert "dropped: thermal slope elevation unknown coherence" in lines
    assert "Known: actual, reference" in cryobench("encoders", "explain", "dofa", "gld", "--view", "x", expect=2).stderr


def test_weights_are_listed_and_verified_and_fetching_says_what_to_do(tmp_path: Path) -> None:
    listed = json.loads(cryobench("weights", "list", "--json", cwd=tmp_path).stdout)["weights"]
    croma = next(row for row in listed if row["file"] == "CROMA_large.pt")
    assert (croma["encoders"], croma["licence"], croma["present"]) == (["croma"], "MIT", False)
    folder = tmp_path / "cryobench-data" / "weights"
    folder.mkdir(parents=True)
    (folder / "CROMA_large.pt").write_bytes(b"one")
    assert "CROMA_large.pt: sha256 7692c3ad" in cryobench("weights", "verify", "croma", cwd=tmp_path).stdout
    (folder / "CROMA_large.pt").write_bytes(b"two")
    done = cryobench("weights", "verify", expect=1, cwd=tmp_path)
    assert "CROMA_large.pt has SHA-256" in done.stdout
    assert "1 files are not what they should be" in done.stderr
    done = cryobench("weights", "fetch", "gfm_swin", expect=1, cwd=tmp_path)
    assert "Fetch gfm.pth by hand (published: the GFM authors' release)" in done.stdout
    assert "Unknown encoder 'crma'" in cryobench("weights", "fetch", "crma", expect=2, cwd=tmp_path).stderr


def test_costs_are_listed_for_what_a_data_set_can_feed(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    rows = json.loads(cryobench("encoders", "list", "--cost", "--dataset", "glid", "--json", cwd=tmp_path).stdout)
    found = {(row["encoder"], row["variant"]): row for row in rows["encoders"]}
    assert found["s12_moco", "optical"]["gmacs"] == pytest.approx(46.2, abs=0.2)
    assert found["unet", "own"]["encoder_mparameters"] == pytest.approx(9.4, abs=0.05)
    assert "gmacs" not in found["s12_mae", "sar"]  # glid has no radar
