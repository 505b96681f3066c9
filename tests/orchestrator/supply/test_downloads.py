"""Published data sets from their places; a local web server stands in for them."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset
from cryobench.conf.dataset_spec import DatasetSpec, DownloadSpec
from cryobench.conf.errors import FetchError
from cryobench.datasets.raw.archives import raw_folder
from cryobench.datasets.store.convert import convert
from cryobench.orchestrator.supply import downloads
from cryobench.orchestrator.supply.downloads import fetch_dataset


def archive(raw: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        packed.add(raw, "glid")
    return buffer.getvalue()


@pytest.fixture
def served(raw_glid: Path) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Address, files by path, and the ranges that were asked for."""
    whole = archive(raw_glid)
    half = len(whole) // 2
    files = {"/glid.tar.gzaa": whole[:half], "/glid.tar.gzab": whole[half:]}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.partition("?")[0])
            if content is None:
                self.send_error(404)
                return
            start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            asked.append(f"{self.path} {start}")
            self.send_response(206 if self.headers["Range"] else 200)
            if self.headers["Range"]:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{md5(content)}"')
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", files, asked
    server.shutdown()


def spec(*places: DownloadSpec) -> DatasetSpec:
    return load_dataset("glid").model_copy(update={"downloads": places})


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_a_data_set_in_parts_comes_resumes_and_converts(
    served: tuple[str, dict[str, bytes], list[str]], tmp_path: Path
) -> None:
    address, files, asked = served
    parts = [DownloadSpec(url=f"{address}{name}", md5=md5(content)) for name, content in files.items()]
    folder = tmp_path / "downloads"
    folder.mkdir()
    second = files["/glid.tar.gzab"]
    (folder / "glid.tar.gzab.part").write_bytes(second[:1000])
    first_answer = {"url": f"{address}/glid.tar.gzab", "validator": f'"{md5(second)}"'}
    (folder / "glid.tar.gzab.part.json").write_text(json.dumps(first_answer))
    told: list[str] = []

    def started(name: str) -> downloads.Progress:
        told.append(name)
        return lambda done, total: None

    fetch_dataset(spec(*parts), folder, tmp_path / "cache", started)
    assert told == ["glid.tar.gzaa", "glid.tar.gzab"]
    assert asked == ["/glid.tar.gzaa 0", "/glid.tar.gzab 1000"]
    fetch_dataset(spec(*parts), folder, tmp_path / "cache", started)
    assert len(asked) == 2  # what is here is only verified
    source = raw_folder(spec(), folder, tmp_path / "unpacked")
    assert convert(load_dataset("glid"), source, tmp_path / "glid.zarr").splits["train"].tiles == 8


def test_fetch_and_prepare_are_two_commands(served: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, files, _ = served
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    places = "".join(f"  - url: {address}{name}\n    md5: {md5(content)}\n" for name, content in files.items())
    layout = '{images: ["{split}/images"], masks: ["{split}/masks"]}'
    whole = f"editions:\n  whole:\n    layout: {layout}\n    tiles: {{train: 8, val: 99}}\n"
    text = f"defaults: [glid, _self_]\n{whole}downloads:\n{places}"
    (tmp_path / "conf" / "dataset" / "mine.yaml").write_text(text)
    entry = "from cryobench.orchestrator.cli import main; main()"
    options = ["mine", "--data-dir", str(tmp_path / "data"), "--config-dir", str(tmp_path / "conf")]

    def run(name: str) -> str:
        command = [sys.executable, "-c", entry, "data", name, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout + done.stderr

    assert "Nothing to prepare 'mine' from" in run("prepare")
    assert "Now run: cryobench data prepare mine" in run("fetch")
    told = run("prepare")
    assert "train: 8 tiles of 64 x 64, as published" in told
    assert "val: 2 tiles of 64 x 64, but 99 are published" in told
    assert "test: 3 tiles of 64 x 64\n" in told
    assert (tmp_path / "data" / "mine.zarr" / "zarr.json").exists()


def test_a_zenodo_record_is_read_for_its_files(
    served: tuple[str, dict[str, bytes], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files, _ = served
    listed = [
        {"key": name[1:], "size": len(content), "checksum": f"md5:{md5(content)}", "links": {"self": address + name}}
        for name, content in files.items()
    ]
    files["/api/records/77"] = json.dumps({"files": listed}).encode()
    monkeypatch.setattr(downloads, "ZENODO", address + "/api/records/{}")
    paths = fetch_dataset(spec(DownloadSpec(zenodo=77)), tmp_path / "d", tmp_path / "cache")
    assert [path.name for path in paths] == ["glid.tar.gzaa", "glid.tar.gzab"]

    listed[0]["key"] = "../escaped"
    files["/api/records/77"] = json.dumps({"files": listed}).encode()
    with pytest.raises(FetchError, match="which is no plain name"):
        fetch_dataset(spec(DownloadSpec(zenodo=77)), tmp_path / "e", tmp_path / "cache")
    files["/api/records/77"] = b"[]"
    with pytest.raises(FetchError, match="expected a JSON object"):
        fetch_dataset(spec(DownloadSpec(zenodo=77)), tmp_path / "e", tmp_path / "cache")
    files["/api/records/77"] = b"{}"
    with pytest.raises(FetchError, match="answered without a list of files"):
        fetch_dataset(spec(DownloadSpec(zenodo=77)), tmp_path / "e", tmp_path / "cache")


def test_another_file_than_published_or_recorded_is_an_error(
    served: tuple[str, dict[str, bytes], list[str]], tmp_path: Path
) -> None:
    address, _, _ = served
    wrong = DownloadSpec(url=f"{address}/glid.tar.gzaa", md5="0" * 32)
    with pytest.raises(FetchError, match="published is 0{32}.*kept as .*damaged; run the command again"):
        fetch_dataset(spec(wrong), tmp_path / "d", tmp_path / "cache")
    assert not (tmp_path / "d" / "glid.tar.gzaa").exists()
    unsigned = DownloadSpec(url=f"{address}/glid.tar.gzaa")
    fetch_dataset(spec(unsigned), tmp_path / "d", tmp_path / "cache")
    (tmp_path / "d" / "glid.tar.gzaa").write_bytes(b"something else")
    with pytest.raises(FetchError, match=r"recorded in .*sha256.json on first use"):
        fetch_dataset(spec(unsigned), tmp_path / "d", tmp_path / "cache")


def test_without_network_or_address_it_says_what_to_do_by_hand(tmp_path: Path) -> None:
    told = (
        r"By hand: download 'glid' \(published: Zenodo 14838695\), put its archives into .*d, then run: cryobench data"
    )
    for places in ((), (DownloadSpec(url="http://127.0.0.1:9/x.zip"),)):
        with pytest.raises(FetchError, match=told):
            fetch_dataset(spec(*places), tmp_path / "d", tmp_path / "cache")


def test_every_data_set_of_the_benchmark_has_an_address() -> None:
    for name in ("caffe", "gld", "glid", "gsdd", "sicd"):
        assert load_dataset(name).downloads, name
    with pytest.raises(ValueError, match="either url or zenodo"):
        DownloadSpec()
    with pytest.raises(ValueError, match="http"):
        DownloadSpec(url="file:///etc/passwd")
