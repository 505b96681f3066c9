"""Downloads that resume, against a real web server on this machine: an honest one and others."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryobench.conf.errors import FetchError
from cryobench.orchestrator.supply import fetch

CONTENT = bytes(range(256)) * 4000
HALF = len(CONTENT) // 2


@dataclass
class Served:
    """What the server has and how it behaves; ``asked`` is Range and If-Range of every request."""

    address: str = ""
    content: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    breaks: bool = False
    resumes: bool = True
    knows_if_range: bool = True
    range_shift: int = 0
    says_total: bool = True
    chunked: bool = False
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted, condition = self.headers["Range"], self.headers["If-Range"]
            state.asked.append((wanted, condition))
            total = len(state.content)
            same = condition in (None, *state.headers.values()) or not state.knows_if_range
            start = 0
            if wanted and same and state.resumes:
                start = int(wanted.removeprefix("bytes=").rstrip("-")) + state.range_shift
                if start >= total:
                    self.send_response(416)
                    if state.says_total:
                        self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            for name, value in state.headers.items():
                self.send_header(name, value)
            body = state.content[start:]
            if state.breaks:
                self.close_connection = True
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if state.breaks else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}/w.pth"
    yield state
    server.shutdown()


@pytest.fixture
def interrupted(served: Served, tmp_path: Path) -> Path:
    """The target of a download that broke halfway."""
    served.breaks = True
    with pytest.raises(FetchError, match=r"ended after 512,000 of 1,024,000 bytes. Run the command again"):
        fetch.download(served.address, tmp_path / "w.pth")
    served.breaks = False
    assert (tmp_path / "w.pth.part").stat().st_size == HALF
    served.asked.clear()
    return tmp_path / "w.pth"


def fetched_whole(target: Path) -> bytes:
    assert [path.name for path in target.parent.iterdir()] == ["w.pth"]
    return target.read_bytes()


def test_a_broken_download_continues(served: Served, interrupted: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch.download(served.address, interrupted, lambda done, total: told.append((done, total)))
    assert fetched_whole(interrupted) == CONTENT
    assert served.asked == [(f"bytes={HALF}-", '"one"')]
    assert told[0][0] > HALF
    assert told[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_comes_anew(served: Served, interrupted: Path, knows_if_range: bool) -> None:
    served.content, served.headers = CONTENT[::-1], {"ETag": '"two"'}
    served.knows_if_range = knows_if_range
    fetch.download(served.address, interrupted)
    assert fetched_whole(interrupted) == CONTENT[::-1]


def test_a_weak_name_is_none_and_the_time_stands_in(served: Served, tmp_path: Path) -> None:
    served.headers = {"ETag": 'W/"one"', "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}
    served.breaks = True
    with pytest.raises(FetchError, match="Run the command again"):
        fetch.download(served.address, tmp_path / "w.pth")
    served.breaks = False
    fetch.download(served.address, tmp_path / "w.pth")
    assert served.asked[-1] == (f"bytes={HALF}-", "Tue, 24 Nov 2026 10:00:00 GMT")
    assert fetched_whole(tmp_path / "w.pth") == CONTENT


def test_without_a_name_of_the_file_a_part_is_not_continued(served: Served, tmp_path: Path) -> None:
    served.headers, served.breaks = {}, True
    with pytest.raises(FetchError, match="Run the command again"):
        fetch.download(served.address, tmp_path / "w.pth")
    served.content, served.breaks = CONTENT[::-1], False
    fetch.download(served.address, tmp_path / "w.pth")
    assert served.asked[-1] == (None, None)
    assert fetched_whole(tmp_path / "w.pth") == CONTENT[::-1]


@pytest.mark.parametrize("memory", [None, "", "[]", '{"url": "http://elsewhere/w.pth", "validator": "\\"one\\""}'])
def test_a_part_of_unknown_origin_is_not_continued(served: Served, tmp_path: Path, memory: str | None) -> None:
    (tmp_path / "w.pth.part").write_bytes(b"half of something")
    if memory is not None:
        (tmp_path / "w.pth.part.json").write_text(memory)
    fetch.download(served.address, tmp_path / "w.pth")
    assert fetched_whole(tmp_path / "w.pth") == CONTENT


@pytest.mark.parametrize("behaviour", [{"resumes": False}, {"range_shift": 7}, {"range_shift": -HALF}])
def test_another_range_than_asked_for_is_not_appended(
    served: Served, interrupted: Path, behaviour: dict[str, int]
) -> None:
    for name, value in behaviour.items():
        setattr(served, name, value)
    fetch.download(served.address, interrupted)
    assert fetched_whole(interrupted) == CONTENT
    assert len(served.asked) == (1 if "resumes" in behaviour else 2)


def test_a_whole_part_is_not_fetched_again(served: Served, interrupted: Path) -> None:
    (interrupted.parent / "w.pth.part").write_bytes(CONTENT)
    fetch.download(served.address, interrupted)
    assert fetched_whole(interrupted) == CONTENT
    assert served.asked == [(f"bytes={len(CONTENT)}-", '"one"')]


@pytest.mark.parametrize("says_total", [True, False])
def test_nothing_left_to_send_is_not_taken_for_whole(served: Served, interrupted: Path, says_total: bool) -> None:
    served.content, served.says_total, served.knows_if_range = CONTENT[:1000], says_total, False
    fetch.download(served.address, interrupted)
    assert fetched_whole(interrupted) == CONTENT[:1000]


def test_a_broken_answer_of_unknown_length_is_explained(served: Served, tmp_path: Path) -> None:
    served.breaks = served.chunked = True
    with pytest.raises(FetchError, match=r"the connection ended after [\d,]+ bytes. Run the command again"):
        fetch.download(served.address, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_what_is_kept_beside_a_part_is_small_and_plain(served: Served, interrupted: Path) -> None:
    kept = json.loads((interrupted.parent / "w.pth.part.json").read_text())
    assert kept == {"url": served.address, "validator": '"one"'}
