"""What every driver keeps to, part four: a daemon that is killed between any two steps leaves everything whole."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from crannog.adapters.storage import process
from crannog.core.volumes import Volume
from crannog.ports.storage import Pool
from tests.contract.benches import (
    ALL,
    IN_PLACE,
    KEEPING,
    LAYER,
    SIZE,
    Bench,
    Contract,
    furnish,
    image,
    put,
    see,
    session,
)

EVENTS = frozenset({
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.utime", "os.link", "os.symlink",
    "fcntl.ioctl", "subprocess.Popen", "shutil.rmtree",
})  # fmt: skip
"""What Python tells of before it does it (docs.python.org/3/library/audit_events.html), and what changes something."""
NOTHING = ("/dev/null", "/dev/mapper/control", "/dev/loop-control")
"""What is opened for writing, and is the same afterwards."""
QUESTIONS = (("lvs",), ("dmsetup", "status"), ("qemu-img", "info"))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
IDLE = ("resize", "trim")
"""What there is nothing to do for, with some volumes of some drivers."""
FINISHED, FAILED = 0, 3
MOST_STEPS = 150
NEW_VM = (replace(KEEPING, vid="new-5/root"), replace(IN_PLACE, vid="new-5/private"))

Act = Callable[[Pool, Volume, Path], Awaitable[object]]


@dataclass(frozen=True)
class Change:
    """What a daemon does when it is killed, and what a volume that held `b` holds when it was not."""

    act: Act
    after: str
    volumes: tuple[Volume, ...] = (KEEPING, IN_PLACE)


async def _finish_import(pool: Pool, volume: Volume, _folder: Path) -> None:
    path = await pool.begin_import(volume, SIZE)
    put(path, b"i" * SIZE)
    await pool.finish_import(volume, SIZE)


async def _clone(pool: Pool, volume: Volume, _folder: Path) -> None:
    await pool.create(NEW_VM)
    await pool.clone(volume, NEW_VM[0 if volume is KEEPING else 1])


async def _clone_onto(pool: Pool, volume: Volume, _folder: Path) -> None:
    await pool.clone(KEEPING if volume is IN_PLACE else IN_PLACE, volume)


async def _come_and_go(pool: Pool, _volume: Volume, _folder: Path) -> None:
    await pool.create(NEW_VM)
    await pool.claim(NEW_VM)
    await pool.remove(NEW_VM)


async def _use_layer(pool: Pool, _volume: Volume, _folder: Path) -> None:
    await session(pool, LAYER, "x")


CHANGES = {
    "import_file": Change(lambda pool, volume, folder: pool.import_file(volume, image(folder, "i")), "i"),
    "finish_import": Change(_finish_import, "i"),
    "clear": Change(lambda pool, volume, _: pool.clear(volume), "\0"),
    "resize": Change(lambda pool, volume, _: pool.resize(volume, 2 * SIZE), "b"),
    "session": Change(lambda pool, volume, _: session(pool, volume, "i"), "i"),
    "revert": Change(lambda pool, volume, _: pool.revert(volume, pool.revisions(volume)[-1]), "a", (KEEPING,)),
    "trim": Change(lambda pool, volume, _: pool.trim(replace(volume, revisions_to_keep=0)), "b"),
    "clone": Change(_clone, "b"),
    "clone onto": Change(_clone_onto, "o"),
    "come and go": Change(_come_and_go, "b", (KEEPING,)),
    "layer": Change(_use_layer, "b", (KEEPING,)),
}


CASES = [
    pytest.param(name, volume, id=f"{name}-{'in-place' if volume is IN_PLACE else 'keeping'}")
    for name in sorted(CHANGES)
    for volume in CHANGES[name].volumes
]


class KillContract(Contract):
    """Kills, with SIGKILL, before each thing that the daemon does to files, and while each tool runs."""

    @pytest.mark.parametrize(("name", "volume"), CASES)
    @pytest.mark.timeout(120)
    def test_a_daemon_that_is_killed_leaves_old_or_new_content(
        self, bench: Bench, name: str, volume: Volume, tmp_path: Path
    ) -> None:
        change = CHANGES[name]
        asyncio.run(prepare(bench, volume, tmp_path))
        for number in range(MOST_STEPS):
            asyncio.run(fill(bench, volume, tmp_path))
            is_done = run_killed(lambda: change.act(bench.open(), volume, tmp_path), number, tmp_path)
            seen = asyncio.run(look(bench, volume))
            assert seen == change.after if is_done else seen in ("b", change.after), f"killed at step {number}"
            if is_done:
                assert number > 0 or name in IDLE
                return
        pytest.fail("it never came to an end")

    def test_the_kill_is_real(self, tmp_path: Path) -> None:
        async def act() -> None:
            (tmp_path / "one").mkdir()
            (tmp_path / "two").mkdir()

        assert not run_killed(act, 1, tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["one"]
        assert run_killed(lambda: asyncio.sleep(0), 0, tmp_path)


async def prepare(bench: Bench, volume: Volume, folder: Path) -> None:
    pool = await furnish(bench.open())
    await pool.import_file(KEEPING if volume is IN_PLACE else IN_PLACE, image(folder, "o"))


async def fill(bench: Bench, volume: Volume, folder: Path) -> None:
    pool = bench.open()
    for letter in "ab":
        await pool.import_file(volume, image(folder, letter))


async def look(bench: Bench, volume: Volume) -> str:
    """Do what the next daemon does, and check all that shall always be so; return what the volume holds."""
    pool = bench.open()
    await pool.recover(ALL)
    assert bench.half_made() == []
    await check_new_vm(bench, pool)
    seen = await see(pool, volume)
    assert await see(pool, LAYER) == (seen if volume is KEEPING else await see(pool, KEEPING))
    return seen


async def check_new_vm(bench: Bench, pool: Pool) -> None:
    """See that the VM that came is whole, if it was made lasting, or else is not there; take it away."""
    folder = NEW_VM[0].vid.partition("/")[0]
    if any(line.startswith(folder) for line in bench.contents()):
        assert [await see(pool, volume) for volume in NEW_VM] == ["\0", "\0"]
    await pool.remove(NEW_VM)
    assert not any(line.startswith(folder) for line in bench.contents())


def run_killed(
    act: Callable[[], Awaitable[object]], number: int, folder: Path, *, while_tools_run: bool = True
) -> bool:
    """Do something in another process that is killed at the step with that number; tell whether it came to its end."""
    child = os.fork()
    if not child:
        code = FAILED
        try:
            os.setpgid(0, 0)
            die_at(number, while_tools_run=while_tools_run)
            asyncio.run(as_coroutine(act))
            code = FINISHED
        except BaseException:  # noqa: BLE001 - nothing of the tests' own process may go on in this one
            (folder / "failure").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    await_group(child)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == FINISHED, (folder / "failure").read_text()
    return True


async def as_coroutine(act: Callable[[], Awaitable[object]]) -> None:
    await act()


def await_group(group: int) -> None:
    """Wait for tools that outlive who started them: they change nothing later that the test looks at."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.002)
    pytest.fail("a tool never ended")


def is_change(event: str, arguments: tuple[object, ...]) -> bool:
    """Tell whether what Python is about to do changes anything: a kill before what does not is the same as later."""
    path = arguments[0] if arguments else None
    if event == "open":
        is_writing = isinstance(arguments[2], int) and arguments[2] & WRITING
        return bool(is_writing) and isinstance(path, str) and path not in NOTHING
    if event == "os.mkdir":
        return not os.path.lexists(str(path))
    if event == "os.remove":
        is_relative = not os.path.isabs(str(path))  # to a folder that is open
        return is_relative or os.path.lexists(str(path))
    if event == "subprocess.Popen":
        return not is_question(cast("Sequence[object]", arguments[1]))
    return event in EVENTS


def is_question(command: Sequence[object]) -> bool:
    """Tell whether a program only looks at what there is."""
    return any(tuple(command[: len(words)]) == words for words in QUESTIONS)


def die_at(number: int, *, while_tools_run: bool) -> None:
    """Have this process killed before its step with that number; starting a tool is one, its running can be another."""
    sys.dont_write_bytecode = True
    steps = iter(range(number + 1))

    def count() -> None:
        if next(steps, None) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if is_change(event, arguments):
            count()

    real = process.start_tool

    def start(
        purpose: str, command: tuple[str, ...], output: BinaryIO, complaints: BinaryIO
    ) -> "subprocess.Popen[bytes]":
        tool = real(purpose, command, output, complaints)
        if while_tools_run and not is_question(command):
            count()
        return tool

    process.start_tool = start
    sys.addaudithook(hear)
