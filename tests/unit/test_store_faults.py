"""Faults and crashes: whatever fails and whenever we die, the file is whole, and memory says what the file says."""

import errno
import logging
import os
import resource
import secrets
import select
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

import pytest

from crannog.adapters.store import whole_file
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.history import History
from crannog.core.registry import Registry
from crannog.editing.editor import Editor
from crannog.errors import StorageError
from tests.fakes import KERNEL
from tests.mounts import small_file_system
from tests.unit.store_worker import (
    COUNTER,
    Process,
    content,
    count_to,
    count_up,
    counters,
    counting_registry,
    full_registry,
    read,
    save_for_ever,
    start,
)

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
FUNCTIONS = ("open", "fsync", "replace", "link", "fstat", "stat", "pwrite", "rename", "unlink", "mkdir", "scandir")
"""What a save calls. `history` comes with `rename`, `mkdir` and `scandir`, and with `unlink` when it is full."""


def is_upkeep(function: str, at: int) -> bool:
    """Tell whether a call is made for the history only: that it fails is logged, and the change is made."""
    return function in ("rename", "unlink", "mkdir", "scandir") or (function == "stat" and at > 2)


def make_store(folder: Path) -> FileStore:
    (folder / "kernels" / KERNEL).mkdir(parents=True, exist_ok=True)
    return FileStore(str(folder / "qubes.xml"), str(folder / "kernels"))


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return make_store(tmp_path)


@pytest.fixture
def process() -> Iterator[Callable[[Callable[[int, int], None]], Process]]:
    """Return a function that starts processes, which end with the test."""
    processes: list[Process] = []

    def begin(work: Callable[[int, int], None]) -> Process:
        processes.append(start(work))
        return processes[-1]

    yield begin
    for one in processes:
        one.close()


class Fault:
    """Has a function of `os` fail at its call number `at`, or from that on; counts the calls."""

    def __init__(self, function: str, at: int, number: int, *, lasts: bool = False) -> None:
        self.at = at
        self.calls = 0
        self.is_harmless = function in ("stat", "mkdir")
        """os.makedirs overlooks an error where the folder is there."""

        self._function, self._number, self._lasts = function, number, lasts
        self._real = getattr(os, function)

    def __call__(self, *arguments: object, **more: object) -> object:
        self.calls += 1
        if self.calls == self.at or (self._lasts and self.calls > self.at):
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*arguments, **more)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Fail during the block."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, self._function, self)
            yield


def left_behind(store: FileStore) -> list[str]:
    return [name for name in os.listdir(os.path.dirname(store.path)) if name.endswith((".new", ".old"))]


def check_change(
    store: FileStore, registry: Registry, caplog: pytest.LogCaptureFixture, fault: Fault, *, may_be_made: bool
) -> None:
    """Change a property while something fails; check that it is changed everywhere or nowhere."""
    editor, vm = Editor(registry, store), registry.find_vm("work")
    told: list[object] = []
    editor.listen(told.append)
    old, before = Path(store.path).read_bytes(), content(registry)
    number = int(vm.get("memory")) + 1
    caplog.clear()
    with fault.on():
        try:
            editor.set_property(vm, "memory", str(number))
            is_made = True
        except StorageError as error:
            is_made, message = False, str(error)
    if is_made:
        assert may_be_made or fault.calls < fault.at
        assert vm.get("memory") == number
        assert content(read(Path(store.path).read_bytes())) == content(registry)
        assert told
        assert len(caplog.records) == (fault.calls >= fault.at) or (fault.is_harmless and not caplog.records)
    else:
        assert not may_be_made
        assert store.path in message or "the lock" in message
        assert any(os.strerror(error) in message for error in ERRORS)
        assert Path(store.path).read_bytes() == old
        assert content(registry) == before
        assert told == []
    assert left_behind(store) == []
    editor.set_property(vm, "memory", str(number + 1))
    assert content(FileStore(store.path, store.kernels_folder).load()) == content(registry)
    assert left_behind(store) == []


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("is_history_full", [False, True])
def test_a_change_that_meets_a_fault_is_made_or_not(
    store: FileStore, caplog: pytest.LogCaptureFixture, function: str, error: int, is_history_full: bool
) -> None:
    """Each call that a save makes fails in turn, until a save makes fewer calls."""
    if is_history_full:
        store.history = History(store.history.folder, 2)
    registry = full_registry()
    for number in range(4 if is_history_full else 1):
        registry.set("stats_interval", number + 1)
        store.save(registry)
    for at in range(1, 50):
        if not is_history_full:
            shutil.rmtree(store.history.folder, ignore_errors=True)
        fault = Fault(function, at, error)
        check_change(store, registry, caplog, fault, may_be_made=is_upkeep(function, at))
        if fault.calls < at:
            break
    assert fault.calls < at
    assert at > 1 or (function == "unlink" and not is_history_full)


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["open", "fsync", "fstat", "link", "stat"])
def test_a_fault_that_lasts(store: FileStore, caplog: pytest.LogCaptureFixture, function: str, error: int) -> None:
    registry = full_registry()
    store.save(registry)
    for at in range(1, 50):
        fault = Fault(function, at, error, lasts=True)
        check_change(store, registry, caplog, fault, may_be_made=is_upkeep(function, at))
        if fault.calls < at:
            break
    assert at > 1


class DyingDisk:
    """A disk on which nothing works from its call number `at` on."""

    def __init__(self, at: int, number: int) -> None:
        self.at = at
        self.calls = 0
        self._number = number

    @contextmanager
    def on(self) -> Iterator[None]:
        """Fail during the block."""
        with pytest.MonkeyPatch.context() as patch:
            for function in ("open", "fsync", "replace", "link", "pwrite", "rename", "unlink", "mkdir"):
                patch.setattr(os, function, self._failing(getattr(os, function)))
            yield

    def _failing(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            self.calls += 1
            if self.calls >= self.at:
                raise OSError(self._number, os.strerror(self._number))
            return real(*arguments, **more)

        return call


def change_on(disk: DyingDisk, store: FileStore, registry: Registry) -> str:
    """Change a property; check that what is said of it is true, and return that in short."""
    editor, vm = Editor(registry, store), registry.find_vm("work")
    old, before = Path(store.path).read_bytes(), content(registry)
    try:
        with disk.on():
            editor.set_property(vm, "memory", str(500 + disk.at))
    except StorageError as error:
        assert content(registry) == before
        if "may not last" in str(error):
            assert Path(store.path + ".old").read_bytes() == old
            assert Path(store.path).read_bytes() != old
            return "may not last"
        assert Path(store.path).read_bytes() == old
        return "refused"
    assert content(read(Path(store.path).read_bytes())) == content(registry)
    return "made"


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_dies_at_any_call(store: FileStore, caplog: pytest.LogCaptureFixture, error: int) -> None:
    """Not even the way back works: what is said of the file is true all the same, and nothing is lost."""
    outcomes = []
    registry = full_registry()
    store.save(registry)
    for at in range(1, 100):
        disk = DyingDisk(at, error)
        outcomes.append(change_on(disk, store, registry))
        if outcomes[-1] == "may not last":
            with pytest.raises(StorageError, match="another program"):
                store.save(registry)
            registry = store.load()
        store.save(registry)
        assert left_behind(store) == []
        if disk.calls < at:
            break
    assert list(dict.fromkeys(outcomes)) == ["refused", "may not last", "made"]
    assert outcomes == sorted(outcomes, key=["refused", "may not last", "made"].index)
    assert len(caplog.records) == outcomes.count("made") - 1
    for version in store.history.versions():
        read(Path(version.path).read_bytes())


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_first_save_meets_a_fault(tmp_path: Path, function: str, error: int) -> None:
    """There is no old file to go back to: there is none afterwards either."""
    for at in range(1, 50):
        store = make_store(tmp_path / str(at))
        registry = store.load()
        fault = Fault(function, at, error)
        with fault.on():
            try:
                store.save(registry)
                is_made = True
            except StorageError:
                is_made = False
        assert is_made == (fault.calls < at)
        assert os.path.lexists(store.path) == is_made
        assert left_behind(store) == []
        store.save(registry)
        assert content(store.load()) == content(registry)
        if is_made:
            break
    assert is_made


@pytest.mark.parametrize("method", ["write", "flush"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_write_that_fails_changes_nothing(
    store: FileStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: str, error: int
) -> None:
    class Broken(BufferedWriter):
        """Writes half of the data, then fails."""

        def write(self, data: object) -> int:
            assert isinstance(data, bytes)
            super().write(data[: len(data) // 2] if method == "write" else data)
            if method == "write":
                super().flush()
                raise OSError(error, os.strerror(error))
            return len(data)

        def flush(self) -> None:
            if method == "flush" and not self.closed:
                super().flush()
                raise OSError(error, os.strerror(error))
            super().flush()

    def open_broken(descriptor: int, _mode: str) -> BufferedWriter:
        return Broken(open(descriptor, "wb", buffering=0))

    registry = full_registry()
    store.save(registry)
    never = Fault("umask", 1, error)
    editor, before, old = Editor(registry, store), content(registry), Path(store.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "open", open_broken, raising=False)
        with pytest.raises(StorageError, match=os.strerror(error)):
            editor.set_property(registry.find_vm("work"), "memory", "600")
    assert (content(registry), Path(store.path).read_bytes(), left_behind(store)) == (before, old, [])
    check_change(store, registry, caplog, never, may_be_made=False)


def test_files_may_not_grow(store: FileStore, process: Callable[[Callable[[int, int], None]], Process]) -> None:
    """A real write that fails halfway, by the limit that ulimit -f sets."""
    registry = full_registry()
    store.save(registry)
    old = Path(store.path).read_bytes()

    def work(_orders: int, _report: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        vm, before = registry.find_vm("work"), content(registry)
        with pytest.raises(StorageError, match=os.strerror(errno.EFBIG)):
            Editor(registry, store).set_property(vm, "memory", "600")
        assert content(registry) == before

    assert process(work).wait() == 0
    assert Path(store.path).read_bytes() == old
    assert left_behind(store) == []


@pytest.mark.parametrize("is_first", [False, True])
def test_when_the_folder_cannot_be_synced_the_old_file_is_back(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    sync_file = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_file(descriptor)

    registry = store.load()
    if not is_first:
        store.save(registry)
    before = os.listdir(os.path.dirname(store.path))
    old = b"" if is_first else Path(store.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse_folders)
        with pytest.raises(StorageError, match="the old file is intact"):
            store.save(full_registry())
    assert sorted(os.listdir(os.path.dirname(store.path))) == sorted({*before, "qubes.xml.lock"})
    assert is_first or Path(store.path).read_bytes() == old
    store.save(full_registry())
    assert "work" in [vm.name for vm in store.load()]


def test_when_it_cannot_be_put_back_nobody_says_that_it_was(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk becomes read-only right after the rename: the sync fails, and so does the way back."""
    store.save(store.load())
    old = Path(store.path).read_bytes()
    fault = Fault("replace", 2, errno.EROFS)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", Fault("fsync", 2, errno.EROFS))
    with fault.on(), pytest.raises(StorageError) as caught:
        store.save(full_registry())
    monkeypatch.setattr(os, "fsync", real)
    assert Path(store.path).read_bytes() == old or "the old file is intact" not in str(caught.value)


def test_where_there_are_no_links_it_can_be_saved_after_a_folder_was_not_synced(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = full_registry()
    store.save(registry)
    old = Path(store.path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", Fault("link", 1, errno.EPERM, lasts=True))
        patch.setattr(os, "fsync", Fault("fsync", 2, errno.EIO))
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            store.save(Registry())
    assert Path(store.path).read_bytes() == old
    store.save(registry)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS], ids=errno.errorcode.get)
def test_where_there_are_no_links_former_versions_are_kept_all_the_same(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    registry, files = counting_registry(0, 2), []
    for number in range(4):
        if number:
            monkeypatch.setattr(os, "link", Fault("link", 1, error, lasts=True))
        count_to(registry, number)
        store.save(registry)
        files.append(Path(store.path).read_bytes())
    assert [Path(version.path).read_bytes() for version in store.history.versions()] == files[:-1]
    assert left_behind(store) == []


def test_where_there_are_no_links_half_a_copy_is_no_former_version(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = full_registry()
    store.save(registry)

    def half(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", Fault("link", 1, errno.EPERM))
        patch.setattr(shutil, "copy2", half)
        with pytest.raises(StorageError):
            store.save(registry)
    assert left_behind(store) == []
    store.save(registry)
    for version in store.history.versions():
        read(Path(version.path).read_bytes())


@pytest.mark.parametrize(
    "at",
    [1, pytest.param(2)],
)
def test_an_error_that_is_none_of_the_systems_changes_nothing_either(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Ctrl-C while the file, or its folder, is synced."""
    registry = full_registry()
    store.save(registry)
    old, before = Path(store.path).read_bytes(), content(registry)
    real, calls = os.fsync, 0

    def interrupt(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Editor(registry, store).set_property(registry.find_vm("work"), "memory", "600")
    assert (Path(store.path).read_bytes(), content(registry), left_behind(store)) == (old, before, [])
    store.save(registry)  # the lock is free


@pytest.mark.parametrize(
    "function",
    [
        "open", "fsync", "fstat", "link", "replace",
        pytest.param(
            "unlink"
        ),
    ],
)  # fmt: skip
def test_notes_that_meet_a_fault_are_written_or_not(store: FileStore, function: str) -> None:
    store.save_notes("x", "0")
    for at in range(1, 50):
        old = store.notes("x")
        fault = Fault(function, at, errno.EIO)
        with fault.on():
            try:
                store.save_notes("x", str(at))
                is_made = True
            except StorageError as error:
                is_made = False
                assert "the old ones are intact" in str(error)  # noqa: PT017 - which call it was decides
        assert store.notes("x") == (str(at) if is_made else old)
        store.save_notes("x", str(at))
        assert os.listdir(Path(store.path).parent / "notes") == ["x.txt"]
        if fault.calls < at:
            break
    assert at > 1
    fault = Fault("unlink", 1, errno.EIO)
    with fault.on(), pytest.raises(StorageError):
        store.save_notes("x", "")
    assert store.notes("x") == str(at)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    with small_file_system(tmp_path / "tiny", "64k") as folder:
        yield folder


@contextmanager
def full_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_a_change_on_a_disk_that_is_full_more_or_less(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The disk is filled so that each page that a save needs is the first that is missing in turn."""
    store = make_store(tiny_disk)
    registry = full_registry()
    registry.find_vm("work").features["large"] = "x" * 10_000
    store.save(registry)
    outcomes = []
    for kibibytes in range(60, 0, -4):
        shutil.rmtree(store.history.folder, ignore_errors=True)
        ballast = tiny_disk / "ballast"
        with full_is_fine(), ballast.open("wb") as file:
            file.write(b"x" * kibibytes * 1024)
        editor, vm = Editor(registry, store), registry.find_vm("work")
        old, before = Path(store.path).read_bytes(), content(registry)
        caplog.clear()
        try:
            editor.set_property(vm, "memory", str(500 + kibibytes))
        except StorageError as error:
            assert os.strerror(errno.ENOSPC) in str(error)  # noqa: PT017 - how full the disk is decides
            assert (Path(store.path).read_bytes(), content(registry)) == (old, before)
            outcomes.append("refused")
        else:
            assert content(read(Path(store.path).read_bytes())) == content(registry)
            outcomes.append("made")
        assert left_behind(store) == []
        ballast.unlink()
    assert {"refused", "made"} == set(outcomes)
    assert outcomes == sorted(outcomes, reverse=True)


def test_a_save_on_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    store = make_store(tiny_disk)
    registry = full_registry()
    store.save(registry)
    old = Path(store.path).read_bytes()
    registry.find_vm("work").features["large"] = "x" * 100_000
    with pytest.raises(StorageError, match="No space left"):
        store.save(registry)
    assert sorted(os.listdir(tiny_disk)) == ["kernels", "qubes.xml", "qubes.xml.lock"]
    assert Path(store.path).read_bytes() == old


# Crashes.


def check_whole(store: FileStore, allowed: set[int], vms: int) -> int:
    """Check that the file is whole and holds one of the allowed numbers; return it."""
    registry = FileStore(store.path, store.kernels_folder).load()
    numbers = counters(registry)
    assert len(registry.local_vms()) == vms
    assert len(numbers) == 1
    assert numbers <= allowed
    return numbers.pop()


def check_history(store: FileStore) -> None:
    """Check that the former versions are whole, in their order, and that none is missing in between."""
    versions = store.history.versions()
    found = [counters(read(Path(version.path).read_bytes())) for version in versions]
    numbers = [number for (number,) in found]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(min(numbers, default=0), max(numbers, default=-1) + 1))
    first = versions[0].number if versions else 0
    assert [version.number for version in versions] == list(range(first, first + len(versions)))


CRASH_POINTS = ("open", "fsync", "replace", "link", "fstat", "pwrite", "rename", "unlink", "mkdir", "close")


@pytest.mark.parametrize("function", CRASH_POINTS)
@pytest.mark.parametrize("is_after", [False, True])
def test_a_death_at_any_step_leaves_the_old_file_or_the_new_one(
    store: FileStore,
    process: Callable[[Callable[[int, int], None]], Process],
    function: str,
    is_after: bool,
) -> None:
    """The process is killed right before or right after each call that a save makes."""
    store.history = History(store.history.folder, 3)
    registry = counting_registry(0, 3)
    number, at = 0 if function == "mkdir" else 4, 0
    for earlier in range(number + 1):
        count_to(registry, earlier)
        store.save(registry)
    while True:
        at += 1

        def work(_orders: int, _report: int, at: int = at, number: int = number) -> None:
            other = FileStore(store.path, store.kernels_folder)
            other.history = History(store.history.folder, 3)
            loaded = other.load()
            count_to(loaded, number + 1)
            real, calls = getattr(os, function), 0

            def die(*arguments: object, **more: object) -> object:
                nonlocal calls
                calls += 1
                if calls == at and not is_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*arguments, **more)
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(os, function, die)
            other.save(loaded)
            setattr(os, function, real)

        ended = process(work).wait()
        number = check_whole(store, {number, number + 1} if ended else {number + 1}, 3)
        check_history(store)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert at > 1
    assert left_behind(store) == []
    assert len(store.history.versions()) <= 4


def test_kill_at_random_moments_leaves_a_whole_file(
    store: FileStore, process: Callable[[Callable[[int, int], None]], Process]
) -> None:
    """300 workers save one number after the other until they are killed; no number that was acknowledged is lost."""
    vms, kills = 20, 300
    store.save(counting_registry(0, vms))
    number, saves = 0, 0
    for kill in range(kills):
        worker = process(save_for_ever(store.path, store.kernels_folder))
        told = os.read(worker.report, 8) if kill % 2 else b""  # each second one has saved something for certain
        time.sleep(secrets.randbelow(30_000) / 1e6)
        worker.kill()
        told += worker.read_rest()
        worker.close()
        assert len(told) % 8 == 0
        acknowledged = [int.from_bytes(told[at : at + 8], "big") for at in range(0, len(told), 8)]
        assert acknowledged == list(range(number + 1, number + 1 + len(acknowledged)))
        last = number + len(acknowledged)
        number = check_whole(store, {last, last + 1}, vms)
        saves += len(acknowledged)
    check_history(store)
    assert saves >= kills // 2
    registry = store.load()
    store.save(registry)
    assert left_behind(store) == []


def test_two_processes_lose_no_change(
    store: FileStore, process: Callable[[Callable[[int, int], None]], Process]
) -> None:
    times = 1000
    store.save(counting_registry(0, 3))
    workers = [process(count_up(store.path, store.kernels_folder, own, times)) for own in ("first", "second")]
    assert [worker.read_line() for worker in workers] == ["ready"] * 2
    before = time.monotonic()
    for worker in workers:
        worker.let_go()
    assert select.select([worker.report for worker in workers], [], [], 120)[0]
    assert [worker.read_line() for worker in workers] == ["done"] * 2
    assert [worker.wait() for worker in workers] == [0, 0]
    features = store.load().find_vm("vm0").features
    assert features == {COUNTER: "0", "first": str(times), "second": str(times), "common": str(2 * times)}
    logging.getLogger(__name__).info("%d changes took %.1f s", 2 * times, time.monotonic() - before)
    assert len(store.history.versions()) == store.history.keep
    assert left_behind(store) == []
