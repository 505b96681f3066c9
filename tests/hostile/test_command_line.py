"""Values of options and arguments as they should not be: each command ends soon, with one message."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Terminal

LONG = "x" * 4000
NAMES = {
    "long": LONG,
    "upward": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "a null": "a\0b",
    "markup": "[/]",
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "a line": "a\nb",
    "not Unicode": "\udcff",
    "an escape": "\x1b[31m",
    "a pattern": "[a-z]*",
    "a command": "$(true)",
}
BY_NAME: dict[str, tuple[str, ...]] = {
    "trial show": ("trial", "show", "{name}", "--storage", "{storage}"),
    "trial eval": ("trial", "eval", "{name}", "--storage", "{storage}", "--data-dir", "{data}"),
    "trial run": ("trial", "run", "{name}", "--storage", "{storage}", "--data-dir", "{data}"),
    "trial run file": ("trial", "run", "{name}.json", "--storage", "{storage}", "--data-dir", "{data}"),
    "logs": ("logs", "{name}", "--storage", "{storage}"),
    "compare": ("compare", "{name}", "{name}x", "--storage", "{storage}"),
    "prune": ("prune", "{name}", "--storage", "{storage}"),
    "status": ("status", "{name}", "--storage", "{storage}"),
    "resume": ("resume", "{name}", "--storage", "{storage}", "--data-dir", "{data}"),
    "leaderboard --sweep": ("leaderboard", "--sweep", "{name}", "--storage", "{storage}"),
    "leaderboard --regime": ("leaderboard", "--regime", "{name}", "--storage", "{storage}"),
    "leaderboard --edition": ("leaderboard", "--edition", "{name}", "--storage", "{storage}"),
    "leaderboard --datasets": ("leaderboard", "--datasets", "{name},x", "--storage", "{storage}"),
    "data info": ("data", "info", "{name}", "--data-dir", "{data}"),
    "data verify": ("data", "verify", "{name}", "--data-dir", "{data}"),
    "data show": ("data", "show", "{name}", "--data-dir", "{data}"),
    "data fetch": ("data", "fetch", "{name}", "--data-dir", "{data}"),
    "data prepare": ("data", "prepare", "{name}", "--data-dir", "{data}"),
    "data prepare --source": ("data", "prepare", "glid", "--source", "{data}/{name}", "--data-dir", "{data}"),
    "data synth": ("data", "synth", "{name}", "--data-dir", "{data}"),
    "encoders explain": ("encoders", "explain", "{name}", "glid"),
    "encoders explain --view": ("encoders", "explain", "unet", "glid", "--view", "{name}"),
    "encoders list": ("encoders", "list", "--dataset", "{name}"),
    "plan encoder": ("plan", "sweep=demo", "encoders=[{name}]", "--data-dir", "{data}", "--storage", "{storage}"),
    "plan sweep": ("plan", "sweep={name}", "--data-dir", "{data}", "--storage", "{storage}"),
    "plan override": ("plan", "{name}", "--data-dir", "{data}", "--storage", "{storage}"),
    "plan name": ("plan", "sweep=demo", "name={name}", "--data-dir", "{data}", "--storage", "{storage}"),
    "plan --simulate": ("plan", "sweep=demo", "--simulate", "{name}", "--data-dir", "{data}", "--storage", "{storage}"),
    "ui --host": ("ui", "--host", "{name}", "--storage", "{storage}"),
    "weights fetch": ("weights", "fetch", "{name}", "--weights-dir", "{data}"),
}
#: What is no name of anything, but may be a value all the same: everything, or the usual.
FINE = {("plan override", "nothing"), ("plan --simulate", "nothing")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", BY_NAME)
def test_a_name_that_is_none(storage: Path, data_dir: Path, terminal: Terminal, command: str, name: str) -> None:
    fields = {"name": NAMES[name], "storage": str(storage), "data": str(data_dir)}
    answer = terminal.run(*(part.format(**fields) for part in BY_NAME[command]))
    assert answer.is_clear(), answer


VALUES: dict[str, tuple[str, ...]] = {
    "device": ("trial", "run", "sweep=demo", "encoder=unet_small", "dataset=glid", "--device", "nope"),
    "device 99": ("trial", "run", "sweep=demo", "encoder=unet_small", "dataset=glid", "--device", "cuda:99"),
    "device meta": ("trial", "run", "sweep=demo", "encoder=unet_small", "dataset=glid", "--device", "meta"),
    "no nodes": ("plan", "sweep=demo", "--simulate", ""),
    "0 nodes": ("plan", "sweep=demo", "--simulate", "0x8xH100"),
    "0 GPUs": ("plan", "sweep=demo", "--simulate", "0xH100"),
    "0 cores": ("plan", "sweep=demo", "--simulate", "0xCPU"),
    "10^5000 GPUs": ("plan", "sweep=demo", "--simulate", "9" * 5000 + "xH100"),
    "10^8 nodes": ("plan", "sweep=demo", "--simulate", "99999999x8xH100"),
    "10^5 x 10^3": ("plan", "sweep=demo", "--simulate", "100000x1024xH100"),
    "no card": ("plan", "sweep=demo", "--simulate", "8xNothing"),
    "no number": ("plan", "sweep=demo", "--simulate", "-1xH100"),
    "commas": ("plan", "sweep=demo", "--simulate", ",,,"),
    "no file": ("plan", "sweep=demo", "--simulate", "/nowhere/nodes.yaml"),
    "a folder for a file": ("plan", "sweep=demo", "--simulate", "{tmp}/folder.yaml"),
    "a pipe for a file": ("plan", "sweep=demo", "--simulate", "{tmp}/pipe.json"),
    "deep JSON": ("plan", "sweep=demo", "--simulate", "{tmp}/deep.json"),
    "deep YAML": ("plan", "sweep=demo", "--simulate", "{tmp}/deep.yaml"),
    "Python in YAML": ("plan", "sweep=demo", "--simulate", "{tmp}/python.yaml"),
    "other nodes": ("plan", "sweep=demo", "--simulate", "{tmp}/other.json"),
    "few tiles": ("data", "synth", "glid", "--tiles", "0", "0", "0"),
    "negative tiles": ("data", "synth", "glid", "--tiles", "-1", "1", "1"),
    "10^12 tiles": ("data", "synth", "glid", "--tiles", "1000000000000", "1", "1"),
    "two numbers of tiles": ("data", "synth", "glid", "--tiles", "1", "1"),
    "no number of tiles": ("data", "synth", "glid", "--tiles", "a", "b", "c"),
    "no size": ("data", "synth", "glid", "--tiles", "1", "1", "1", "--size", "0"),
    "negative size": ("data", "synth", "glid", "--tiles", "1", "1", "1", "--size", "-5"),
    "10^9 pixels a side": ("data", "synth", "glid", "--tiles", "1", "1", "1", "--size", "1000000000"),
    "10^30 pixels a side": ("data", "synth", "glid", "--tiles", "1", "1", "1", "--size", "1" + "0" * 30),
    "negative seed": ("data", "synth", "glid", "--seed", "-1"),
    "10^40 seeds": ("data", "synth", "glid", "--tiles", "1", "1", "1", "--size", "32", "--seed", "9" * 40),
    "10^9 threads": ("data", "verify", "glid", "--threads", "1000000000"),
    "0 tiles on the sheet": ("data", "show", "glid", "-n", "0"),
    "sheet into nowhere": ("data", "show", "glid", "--out", "/proc/nothing/x.png"),
    "sheet onto a folder": ("data", "show", "glid", "--out", "{tmp}"),
    "port 0": ("ui", "--port", "0"),
    "port 65536": ("ui", "--port", "65536"),
    "no port": ("ui", "--port", "http"),
    "port in use": ("ui", "--port", "{port}"),
    "keep 0": ("prune", "first", "--keep", "0"),
    "keep 10^30": ("prune", "first", "--keep", "1" + "0" * 30),
    "golden": ("encoders", "check", "--golden", "/nowhere"),
    "an option that is none": ("plan", "--nothing"),
    "a command that is none": ("nothing",),
}


@pytest.fixture
def port() -> Iterator[int]:
    """A port that something listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


@pytest.mark.parametrize("what", VALUES)
def test_a_value_that_is_none(
    storage: Path,
    data_dir: Path,
    tmp_path: Path,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    port: int,
    what: str,
) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "deep.yaml").write_text("[" * 5_000)
    (tmp_path / "python.yaml").write_text("!!python/object/apply:os.system [true]")
    (tmp_path / "other.json").write_text('[{"card": 7, "gpus": "many"}]')
    command = [part.format(tmp=tmp_path, port=port) for part in VALUES[what]]
    if command[1:2] == ["synth"]:
        monkeypatch.setenv("CRYOBENCH_DATA", str(tmp_path / "made"))
    else:
        monkeypatch.setenv("CRYOBENCH_DATA", str(data_dir))
    monkeypatch.setenv("CRYOBENCH_STORAGE", str(storage))
    monkeypatch.setenv("CRYOBENCH_CACHE", str(tmp_path / "cache"))
    answer = terminal.run(*command)
    assert answer.is_clear(), answer
    assert answer.code in ((0, None, 1, 2) if what in ("10^9 threads", "keep 10^30") else (1, 2)), answer


PLACES = {
    "a file": "{tmp}/file",
    "below a file": "{tmp}/file/below",
    "/proc": "/proc/nothing",
    "/proc/self": "/proc/self/fd",
    "/sys": "/sys/nothing",
    "a device": "/dev/null",
    "below a device": "/dev/null/below",
    "a pipe": "{tmp}/pipe",
    "a link to nothing": "{tmp}/lost",
    "a link to itself": "{tmp}/loop",
    "long": "/" + LONG,
    "long parts": "/tmp/" + "/".join(["x" * 200] * 30),
    "a null": "/tmp/a\0b",
    "not Unicode": "{tmp}/\udcff",
    "markup": "{tmp}/[/]",
    "an unknown user": "~nobody-of-this-name/x",
    "ftp": "ftp://host/folder",
    "no scheme": "://host",
    "only a scheme": "s3://",
    "javascript": "javascript://x",
    "http": "http://127.0.0.1:9/x",
    "a bad port": "s3://bucket/x?endpoint_override=127.0.0.1:99999999",
    "a bad option": "s3://bucket/x?nothing=1",
    "brackets": "s3://[::1/x",
    "file with a null": "file:///tmp/a%00b",
    "file on a host": "file://host/nowhere",
    "a blank": "{tmp}/ ",
}
AT = {
    "leaderboard": ("leaderboard", "--storage", "{place}"),
    "sync": ("sync", "--storage", "{place}", "--tracking-uri", "none"),
    "status": ("status", "first", "--storage", "{place}"),
    "trial show": ("trial", "show", "x", "--storage", "{place}"),
    "trial run": (
        *("trial", "run", "sweep=demo", "encoder=unet_small", "dataset=glid", "regime=finetune", "lr=1e-3"),
        *("lr_search=null", "protocol.epochs=1", "--device", "cpu"),
        *("--storage", "{place}", "--data-dir", "{data}", "--cache-dir", "{tmp}/cache"),
    ),
    "logs": ("logs", "x", "--storage", "{place}"),
    "ui": ("ui", "--storage", "{place}"),
    "plan of data": ("plan", "sweep=demo", "--data-dir", "{place}", "--storage", "{tmp}/storage"),
    "data list": ("data", "list", "--data-dir", "{place}"),
    "data info": ("data", "info", "glid", "--data-dir", "{place}"),
    "data synth": ("data", "synth", "glid", "--data-dir", "{place}", "--tiles", "1", "1", "1", "--size", "32"),
    "data prepare": ("data", "prepare", "glid", "--data-dir", "{place}"),
    "data prepare source": ("data", "prepare", "glid", "--data-dir", "{tmp}/data", "--source", "{place}"),
    "data fetch": ("data", "fetch", "front", "--data-dir", "{place}", "--config-dir", "{tmp}/config"),
    "cache": (
        *("trial", "run", "sweep=demo", "encoder=unet_small", "dataset=glid", "regime=finetune", "lr=1e-3"),
        *("lr_search=null", "protocol.epochs=1", "--device", "cpu"),
        *("--cache-dir", "{place}", "--data-dir", "{data}", "--storage", "{tmp}/storage"),
    ),
    "weights list": ("weights", "list", "--weights-dir", "{place}"),
    "config": ("plan", "sweep=demo", "--config-dir", "{place}", "--storage", "{tmp}/storage", "--data-dir", "{data}"),
    "encoders": ("encoders", "list", "--config-dir", "{place}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", AT)
def test_a_place_that_is_none(
    tmp_path: Path, data_dir: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "file").write_text("x")
    (tmp_path / "config").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    where = PLACES[place].format(tmp=tmp_path)
    answer = terminal.run(*(part.format(place=where, tmp=tmp_path, data=data_dir) for part in AT[command]))
    assert answer.is_clear(), answer
