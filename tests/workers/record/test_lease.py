"""Leases: one holder at a time, on a folder and on an object store, whatever the clocks say and whoever sleeps."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cryobench.conf.errors import HeldElsewhereError, InterruptedTrialError, LeaseLostError
from cryobench.workers.record import lease as leases
from cryobench.workers.record import lease_files
from cryobench.workers.record.lease import Lease, leased, parse_lease, read_lease, take_lease
from cryobench.workers.record.lease_files import FolderLeaseFile, LeaseFile, StoreLeaseFile
from cryobench.workers.record.object_store import open_store

Files = Callable[[], LeaseFile]


@pytest.fixture(params=["folder", "store"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A function that gives, as to another process each time, the same lease file."""
    if request.param == "folder":
        return lambda: FolderLeaseFile(tmp_path / "lease.json")
    base, _, query = request.getfixturevalue("s3").partition("?")
    return lambda: StoreLeaseFile(open_store(f"{base}/{tmp_path.name}?{query}"), "trials/t/lease.json")


@pytest.fixture
def elsewhere() -> Callable[..., Lease]:
    """A function that gives a lease of a process on another machine."""

    def build(**more: object) -> Lease:
        lease = Lease.of_this_process(float(str(more.pop("length_s", 0.6))))
        return replace(lease, host="node-7", pid=4711, machine="another", **more)  # type: ignore[arg-type]

    return build


HOLDER = """
import sys, time
from pathlib import Path
from cryobench.conf.errors import LeaseLostError
from cryobench.workers.record.lease import take_lease
from cryobench.workers.record.lease_files import FolderLeaseFile
held = take_lease(FolderLeaseFile(Path(sys.argv[1]) / "lease.json"), "Trial t", length_s=float(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
try:
    held.require()
    print("mine", flush=True)
except LeaseLostError as error:
    print("lost:", error, flush=True)
"""


def holder(folder: Path, length_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(length_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lease_is_shown_while_it_is_held_and_free_afterwards(tmp_path: Path) -> None:
    with leased(FolderLeaseFile(tmp_path / "lease.json"), "Trial t") as held:
        held.require()
        shown = read_lease(tmp_path)
        assert shown is not None
        assert (shown.pid, shown.expires - shown.taken) == (os.getpid(), leases.LENGTH_S)
        assert json.loads((tmp_path / "lease.json").read_text())["format"] == 1
    assert read_lease(tmp_path) is None
    assert not (tmp_path / "lease.json").exists()


def test_a_held_lease_is_refused_with_the_name_of_its_holder(files: Files) -> None:
    with (
        leased(files(), "Trial t"),
        pytest.raises(HeldElsewhereError, match=rf"Trial t is being run .*process {os.getpid()}, since"),
        leased(files(), "Trial t", patience_s=0.1),
    ):
        pytest.fail("held twice")
    with leased(files(), "Trial t", patience_s=0.1):
        pass  # given back


def test_a_dead_holder_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path, 3600)
    process.kill()  # and not waited for: to the system it still has this number
    began = time.monotonic()
    with leased(FolderLeaseFile(tmp_path / "lease.json"), "Trial t", length_s=3600, patience_s=20):
        assert time.monotonic() - began < 20
    process.wait()


def test_a_process_that_only_has_the_number_of_the_dead_one_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = Lease.of_this_process(60)
    assert mine.holder_is_gone  # this process lives, and holds nothing by that name
    monkeypatch.setattr(leases, "_held_here", {mine.holder})
    assert not mine.holder_is_gone
    assert replace(mine, started=(mine.started or 0) - 1).holder_is_gone
    assert not replace(mine, machine="another", pid=2**22 + 1).holder_is_gone


@pytest.mark.parametrize("expires", [0.0, 4e9])
def test_no_two_clocks_have_to_agree(files: Files, elsewhere: Callable[..., Lease], expires: float) -> None:
    """What the holder's clock says of the end is not looked at: renewed it stands, not renewed it goes."""
    file, lease = files(), elsewhere(expires=expires, taken=expires or 1.0)
    tag = file.write(lease.content(), None)
    over = threading.Event()

    def renew() -> None:
        nonlocal tag, lease
        while not over.wait(0.1):
            lease = replace(lease, renewed=lease.renewed + 1)
            tag = file.write(lease.content(), tag)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(HeldElsewhereError, match="node-7, process 4711"):
            take_lease(files(), "Trial t", length_s=0.6, patience_s=1.5)
    finally:
        over.set()
        thread.join()
    began = time.monotonic()
    take_lease(files(), "Trial t", length_s=0.6).give_back()
    assert time.monotonic() - began >= 0.6


def test_what_this_process_could_not_give_back_it_takes_again(files: Files) -> None:
    """The storage was away when the attempt ended; the next one in this process does not wait for the lease's end."""
    file = files()
    file.write(Lease.of_this_process(3600).content(), None)
    take_lease(files(), "Trial t", patience_s=5).give_back()


def test_a_paused_holder_finds_its_lease_lost(tmp_path: Path) -> None:
    process = holder(tmp_path, 1.0)
    process.send_signal(signal.SIGSTOP)
    with leased(FolderLeaseFile(tmp_path / "lease.json"), "Trial t", length_s=30, patience_s=20):
        process.send_signal(signal.SIGCONT)
        told, _ = process.communicate("\n", timeout=60)
        assert "took it over" in told
        assert f"process {os.getpid()}" in told
        shown = read_lease(tmp_path)
        assert shown is not None
        assert shown.pid == os.getpid()


def test_a_pause_in_which_nobody_came_costs_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path, 1.0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n", timeout=60)[0] == "mine\n"


def test_of_many_that_wait_for_a_stale_lease_one_gets_it(files: Files, elsewhere: Callable[..., Lease]) -> None:
    files().write(elsewhere(length_s=0.3).content(), None)
    inside, most, done, lock = 0, 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(2):
            with leased(files(), "Trial t", length_s=5, patience_s=60) as held:
                held.require()
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.02)
                with lock:
                    inside -= 1
                    done += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 12)


def test_a_writer_that_slept_through_others_is_refused(files: Files) -> None:
    """Its number may be free again: others came and went since."""
    sleeper, others = files(), files()
    first = sleeper.write(b"a", None)
    tag = first
    for content in (b"b", b"c", b"d"):
        tag = others.write(content, tag)
        assert tag is not None
    assert sleeper.write(b"late", first) is None
    assert sleeper.write(b"late", None) is None
    found = others.read()
    assert found is not None
    assert (found.content, found.tag) == (b"d", tag)


def test_waiting_ends_when_it_is_to(files: Files) -> None:
    told: list[Lease | None] = []
    with leased(files(), "Trial t"), pytest.raises(InterruptedTrialError, match="waiting for trial t, held by"):
        take_lease(files(), "Trial t", should_stop=lambda: True, waiting=told.append)
    assert [lease.pid for lease in told if lease] == [os.getpid()]


def test_a_lease_taken_from_one_that_goes_on_renewing_is_lost_to_it(files: Files) -> None:
    lost = threading.Event()
    held = take_lease(files(), "Trial t", length_s=0.3, on_lost=lost.set)
    found = None
    while found is None:  # against a holder that lives one has to be quick
        now = files().read()
        assert now is not None
        found = files().write(Lease.of_this_process(60).content(), now.tag)
    assert lost.wait(10)
    with pytest.raises(LeaseLostError):
        held.require()
    held.give_back()
    now = files().read()
    assert now is not None
    assert now.tag == found


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(lease_files.os, "link", refused)
    file = FolderLeaseFile(tmp_path / "lease.json")
    assert file.write(b"a", None) == "1"
    assert file.write(b"b", None) is None
    assert file.write(b"b", "1") == "2"


def test_stores_that_do_not_look_at_conditions_are_told_of(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    real = obstore.put
    monkeypatch.setattr(
        obstore, "put", lambda store, path, content, mode=None, **more: real(store, path, content, **more)
    )
    base, _, query = s3.partition("?")
    file = StoreLeaseFile(open_store(f"{base}/{tmp_path.name}?{query}"), "lease.json")
    assert file.unconditional is None
    with leased(file, "Trial t", length_s=30, patience_s=5) as held:
        assert file.unconditional is not None
        held.require()
        with pytest.raises(HeldElsewhereError):
            take_lease(file, "Trial t", patience_s=0.1)


def test_damaged_and_later_leases_are_waited_out(files: Files) -> None:
    for content in (b"", b"{", b'{"format": 2}', b"[]"):
        assert parse_lease(content) is None
    file = files()
    file.write(b'{"format": 99}', None)
    with pytest.raises(HeldElsewhereError, match="which cannot be read"):
        take_lease(file, "Trial t", length_s=0.5, patience_s=0.1)
    take_lease(file, "Trial t", length_s=0.5, patience_s=5).give_back()
