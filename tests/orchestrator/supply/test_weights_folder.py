"""The catalogue of published weights: fetching, resuming, recording and checking digests."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryobench.conf.compose import load_encoder, load_encoders
from cryobench.conf.errors import BadCheckpointError, FetchError, MissingWeightsError
from cryobench.conf.schema import WeightsSpec
from cryobench.orchestrator.supply.digest_record import RECORD
from cryobench.orchestrator.supply.weights_folder import WeightsFolder, catalogue

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Server.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def spec(**more: object) -> WeightsSpec:
    return WeightsSpec(file="w.pth", published="our server", **more)  # type: ignore[arg-type]


def test_the_catalogue_names_every_file_once_with_its_licence() -> None:
    entries = catalogue(load_encoders())
    files = [entry.spec.file for entry in entries]
    assert len(files) == len(set(files)) == 16
    by_file = {entry.spec.file: entry for entry in entries}
    assert by_file["CROMA_large.pt"].spec.licence == "MIT"
    assert by_file["scalemae-vitlarge-800.pth"].spec.licence == "CC-BY-NC-4.0"
    without = [file for file, e in by_file.items() if not (e.spec.hugging_face or e.spec.url)]
    assert without == ["gfm.pth"]


def test_a_file_is_fetched_and_its_digest_recorded(address: str, tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path / "w", tmp_path / "cache")
    told: list[tuple[int, int]] = []
    path = folder.fetch(spec(url=f"{address}/file"), lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert hashlib.sha256(CONTENT).hexdigest() in (tmp_path / "w" / RECORD).read_text()
    folder.fetch(spec(url=f"{address}/file"))
    assert len(Server.asked) == 1  # a file that is here is not fetched again


def test_without_a_network_it_says_what_to_do_by_hand(tmp_path: Path, address: str) -> None:
    folder = WeightsFolder(tmp_path / "w", tmp_path / "cache")
    for where in ({"url": "http://127.0.0.1:9/x"}, {"url": f"{address}/gone"}, {}):
        with pytest.raises(FetchError, match=r"Fetch w.pth by hand \(published: our server\) and put it into .*/w"):
            folder.fetch(spec(**where))


def test_the_hub_without_a_network_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    folder = WeightsFolder(tmp_path / "w", tmp_path / "cache")
    with pytest.raises(FetchError, match=r"w.pth of a/b on the Hugging Face Hub cannot be fetched.*by hand"):
        folder.fetch(spec(hugging_face="a/b"))


def test_the_hub_gives_its_file_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def served(repository: str, file: str, local_dir: Path) -> str:
        assert repository == "a/b"
        (local_dir / file).write_bytes(CONTENT)
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", served)
    folder = WeightsFolder(tmp_path / "w", tmp_path / "cache")
    assert folder.fetch(spec(hugging_face="a/b")).read_bytes() == CONTENT


def test_another_file_than_recorded_or_published_is_an_error(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path, tmp_path / "cache")
    (tmp_path / "w.pth").write_bytes(b"one")
    assert folder.verified(spec()) == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(BadCheckpointError, match=r"expected .* \(recorded in .* on first use\)"):
        folder.verified(spec())
    with pytest.raises(BadCheckpointError, match=r"\(published\)"):
        folder.verified(spec(sha256="0" * 64))
    with pytest.raises(MissingWeightsError):
        folder.verified(spec().model_copy(update={"file": "no.pth"}))


def test_a_missing_file_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    weights, problem = WeightsFolder(tmp_path, tmp_path).of(load_encoder("croma"), "optical", "published")
    assert "cryobench weights fetch croma" in str(problem)
    assert weights.digest == "missing:CROMA_large.pt"
