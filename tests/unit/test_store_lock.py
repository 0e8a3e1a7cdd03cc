"""The lock of the store: a daemon is not waited for, a tool is, and nobody who has died keeps it."""

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.adapters.store.file import FileStore
from crannog.adapters.store.lock import DAEMON, WAIT, StoreLock
from crannog.errors import DaemonError, StorageError
from tests.processes import list_children
from tests.unit.store_worker import Process, Work, await_order, count_to, counters, counting_registry, say, start

Begin = Callable[[Work], Process]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "qubes.xml.lock")


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Return a function that starts processes, which end with the test."""
    processes: list[Process] = []

    def begin_one(work: Work) -> Process:
        processes.append(start(work))
        return processes[-1]

    yield begin_one
    for process in processes:
        process.close()


def hold(path: str, role: str) -> Work:
    """Return work that takes the lock, says so, and gives it back when told."""

    def work(orders: int, report: int) -> None:
        lock = StoreLock(path)
        lock.acquire(role)
        say(report, "held")
        await_order(orders)
        lock.release()
        say(report, "free")
        await_order(orders)

    return work


def holder(begin: Begin, path: str, role: str) -> Process:
    process = begin(hold(path, role))
    assert process.read_line() == "held"
    return process


def test_it_can_be_taken_and_given_back_again_and_again(path: str) -> None:
    lock = StoreLock(path)
    for _ in range(3):
        lock.acquire("a tool", 0)
        lock.release()
        lock.release()
    assert os.listdir(f"/proc/{os.getpid()}/fd") != []
    assert [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")].count(path) == 0


def test_the_file_is_private_and_says_who_holds_it(path: str) -> None:
    lock = StoreLock(path)
    lock.acquire("qvm-prefs")
    assert Path(path).read_text().strip() == f"qvm-prefs (process {os.getpid()})"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    lock.release()
    lock.acquire("x" * 200)
    assert len(Path(path).read_bytes()) == 64
    lock.release()


@pytest.mark.parametrize("role", ["qvm-ls", DAEMON])
def test_a_daemon_that_holds_it_is_named_at_once(path: str, begin: Begin, role: str) -> None:
    process = holder(begin, path, DAEMON)
    for _ in range(3):
        before = time.monotonic()
        with pytest.raises(
            DaemonError, match=rf"crannogd \(process {process.pid}\) .*{os.path.dirname(path)}"
        ) as caught:
            StoreLock(path).acquire(role)
        assert time.monotonic() - before < WAIT / 2
    assert "crannog daemon stop" in str(caught.value)
    process.let_go()
    assert process.read_line() == "free"
    StoreLock(path).acquire(role, 0)


def test_a_tool_that_holds_it_is_waited_for(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.3)
    assert Path(path).read_text().startswith("a tool")
    process.let_go()
    assert process.read_line() == "free"
    assert waiting.read_line() == "held"
    assert Path(path).read_text().strip() == f"another (process {waiting.pid})"


def test_a_daemon_waits_for_a_tool_too(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, DAEMON))
    time.sleep(0.1)
    process.let_go()
    assert waiting.read_line() == "held"
    with pytest.raises(DaemonError):
        StoreLock(path).acquire("a tool")


def test_a_daemon_that_gets_it_meanwhile_ends_the_waiting(path: str, begin: Begin) -> None:
    """The holder becomes a daemon: whoever waits finds out, and does not wait to its end."""
    process = holder(begin, path, "a tool")

    def work(_orders: int, report: int) -> None:
        say(report, "waiting")
        try:
            StoreLock(path).acquire("another")
        except DaemonError as error:
            say(report, error)

    waiting = begin(work)
    assert waiting.read_line() == "waiting"
    time.sleep(0.2)
    before = time.monotonic()
    with open(path, "r+b", buffering=0) as file:
        file.write(f"{f'{DAEMON} (process {process.pid})':<63}\n".encode())
    assert "owns the store" in waiting.read_line()
    assert time.monotonic() - before < WAIT / 2
    assert waiting.wait() == 0


@pytest.mark.parametrize("wait", [0.1, 0.5])
def test_a_tool_that_keeps_it_is_named_in_time(path: str, begin: Begin, wait: float) -> None:
    process = holder(begin, path, "qvm-clone")
    before = time.monotonic()
    with pytest.raises(StorageError, match=rf"^qvm-clone \(process {process.pid}\) has been working on the store"):
        StoreLock(path).acquire("another", wait)
    assert wait <= time.monotonic() - before < WAIT / 2


def test_after_waiting_in_vain_it_can_be_taken_by_anybody(path: str, begin: Begin) -> None:
    """What waited in the background does not get it in the end, and is nobody's."""
    process = holder(begin, path, "qvm-clone")
    lock = StoreLock(path)
    for _ in range(3):
        with pytest.raises(StorageError, match="has been working"):
            lock.acquire("another", 0.05)
    process.let_go()
    assert process.read_line() == "free"
    lock.acquire("another", 5)
    with pytest.raises(StorageError, match="another"):
        StoreLock(path).acquire("a third", 0.2)
    lock.release()
    assert holder(begin, path, "a fourth").pid


@pytest.mark.parametrize("role", ["a tool", DAEMON])
def test_it_is_free_after_its_holder_was_killed(path: str, begin: Begin, role: str) -> None:
    for _ in range(5):
        process = holder(begin, path, role)
        process.kill()
        lock = StoreLock(path)
        lock.acquire("another", 0)
        assert Path(path).read_text().startswith("another")
        lock.release()


def test_who_waits_gets_it_when_the_holder_is_killed(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.2)
    process.kill()
    assert waiting.read_line() == "held"


def test_a_waiter_that_is_killed_is_nobodys_trouble(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.2)
    waiting.kill()
    process.let_go()
    assert process.read_line() == "free"
    StoreLock(path).acquire("a third", 0)


def test_a_waiter_that_is_stopped_does_not_keep_others_out_for_ever(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.2)
    os.kill(waiting.pid, signal.SIGSTOP)
    process.let_go()
    assert process.read_line() == "free"
    before = time.monotonic()
    lock = StoreLock(path)
    lock.acquire("a third", 0.5)
    assert time.monotonic() - before < WAIT / 2
    lock.release()
    os.kill(waiting.pid, signal.SIGCONT)
    assert waiting.read_line() == "held"


def test_who_holds_it_and_asks_again_goes_on_holding_it(path: str) -> None:
    lock = StoreLock(path)
    lock.acquire("a tool")
    with pytest.raises(StorageError):
        lock.acquire("a tool", 0.1)
    with pytest.raises(StorageError):
        StoreLock(path).acquire("another", 0.1)
    lock.release()


def test_programs_that_the_holder_starts_do_not_hold_it(path: str, begin: Begin) -> None:
    def work(orders: int, report: int) -> None:
        StoreLock(path).acquire("a tool")
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "60"])  # noqa: S606 - no shell is wanted here
        time.sleep(0.3)
        say(report, "held")
        await_order(orders)

    process = begin(work)
    assert process.read_line() == "held"
    (child,) = list_children(process.pid)
    process.kill()
    StoreLock(path).acquire("another", 0)
    os.kill(child, signal.SIGKILL)


def test_what_a_dead_daemon_wrote_frightens_nobody(path: str, begin: Begin) -> None:
    holder(begin, path, DAEMON).kill()
    assert Path(path).read_text().startswith(DAEMON)
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.1)
    process.let_go()
    assert waiting.read_line() == "held"


def test_a_holder_that_is_slow_to_sign_is_not_taken_for_a_dead_daemon(path: str, begin: Begin) -> None:
    """It was stopped, or had no processor, between taking the lock and signing."""
    holder(begin, path, DAEMON).kill()

    def work(orders: int, report: int) -> None:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            say(report, "held")
            await_order(orders)

    assert begin(work).read_line() == "held"
    with pytest.raises(StorageError, match="has been working"):
        StoreLock(path).acquire("another", 0.2)


def test_a_link_in_its_place_is_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, path)
    with pytest.raises(StorageError, match=f"the lock {path} cannot be used: {os.strerror(errno.ELOOP)}"):
        StoreLock(path).acquire("a tool")
    assert victim.read_text() == "precious"
    store = FileStore(path.removesuffix(".lock"), str(tmp_path / "kernels"))
    with pytest.raises(StorageError, match="cannot be used"):
        store.save(store.load())
    assert victim.read_text() == "precious"
    assert os.listdir(tmp_path) == ["victim", "qubes.xml.lock"] or not os.path.exists(store.path)


@pytest.mark.parametrize("place", ["/nowhere/qubes.xml.lock", "/etc/hostname/qubes.xml.lock", "/"])
def test_a_place_where_no_lock_can_be_is_named(place: str) -> None:
    with pytest.raises(StorageError, match=f"the lock {place} cannot be used: "):
        StoreLock(place).acquire("a tool")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_lock_that_cannot_be_signed_is_given_back(path: str, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(_descriptor: int, _data: bytes, _at: int) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(StorageError, match=os.strerror(error)):
            StoreLock(path).acquire("a tool")
    StoreLock(path).acquire("another", 0)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(path: str, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="lock"):
        StoreLock(path).acquire("a tool")


def test_a_lock_file_that_was_deleted_does_not_make_two_holders(path: str, begin: Begin) -> None:
    """Waiting for a file that is deleted before it is free: the one that is in its place then is what counts."""
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.2)
    os.unlink(path)
    StoreLock(path).acquire("a third", 0)  # nothing can be done against that; but it shall be the last one
    process.let_go()
    assert process.read_line() == "free"
    time.sleep(0.2)
    assert Path(path).read_text().startswith("a third")
    waiting.let_go()
    waiting.kill()
    assert waiting.read_rest() == b""


def test_a_lock_file_that_was_deleted_is_made_anew(path: str, begin: Begin) -> None:
    process = holder(begin, path, "a tool")
    waiting = begin(hold(path, "another"))
    time.sleep(0.2)
    os.unlink(path)
    process.let_go()
    assert waiting.read_line() == "held"
    with pytest.raises(StorageError, match=r"^another \("):
        StoreLock(path).acquire("a third", 0.1)


def test_where_folders_cannot_be_locked_the_lock_works_all_the_same(
    path: str, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def refuse_folders(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse_folders)
    process = holder(begin, path, "a tool")
    with pytest.raises(StorageError, match=r"^a tool \("):
        StoreLock(path).acquire("another", 0.1)
    process.let_go()
    StoreLock(path).acquire("another", 5)


def test_it_is_held_for_a_block_once(path: str, begin: Begin) -> None:
    lock = StoreLock(path)
    with lock.held():
        with lock.held(), pytest.raises(StorageError):
            StoreLock(path).acquire("another", 0.1)
        with pytest.raises(StorageError):
            StoreLock(path).acquire("another", 0.1)
    process = holder(begin, path, "another")
    process.kill()
    lock.acquire("a tool", 0)
    with pytest.raises(KeyError), lock.held():
        raise KeyError
    with pytest.raises(StorageError, match="a tool"):
        StoreLock(path).acquire("another", 0.1)
    lock.release()
    with pytest.raises(KeyError), lock.held():
        raise KeyError
    StoreLock(path).acquire("another", 0)


def test_a_save_waits_for_a_tool_and_not_for_a_daemon(tmp_path: Path, begin: Begin) -> None:
    store = FileStore(str(tmp_path / "qubes.xml"), str(tmp_path / "kernels"))
    registry = counting_registry(1, 2)
    store.save(registry)
    old = Path(store.path).read_bytes()
    daemon = holder(begin, store.path + ".lock", DAEMON)
    count_to(registry, 2)
    with pytest.raises(DaemonError, match=str(daemon.pid)):
        store.save(registry)
    assert Path(store.path).read_bytes() == old
    daemon.kill()
    tool = holder(begin, store.path + ".lock", "a tool")

    def work(_orders: int, report: int) -> None:
        say(report, "saving")
        store.save(registry)

    saving = begin(work)
    assert saving.read_line() == "saving"
    time.sleep(0.2)
    assert Path(store.path).read_bytes() == old
    tool.let_go()
    assert saving.wait() == 0
    assert counters(store.load()) == {2}


@pytest.mark.parametrize("seconds", [0.0, 0.005])
def test_waiting_is_fair(path: str, begin: Begin, seconds: float) -> None:
    """Who takes the lock again at once, and again and again, does not keep the others out."""

    def work(orders: int, report: int) -> None:
        lock, taken = StoreLock(path), 0
        say(report, "ready")
        await_order(orders)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            lock.acquire("a tool")
            taken += 1
            time.sleep(seconds)
            lock.release()
        say(report, taken)

    processes = [begin(work) for _ in range(3)]
    assert [process.read_line() for process in processes] == ["ready"] * 3
    for process in processes:
        process.let_go()
    taken = [int(process.read_line()) for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert min(taken) >= 15, taken
