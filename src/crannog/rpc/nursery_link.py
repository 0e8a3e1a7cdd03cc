"""The daemon's link to the parent of the RPC processes, and to its children (asyncio)."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from dataclasses import dataclass

from crannog.errors import RpcError
from crannog.rpc import nursery_messages as messages
from crannog.rpc.nursery_messages import Birth
from crannog.rpc.place import Place

PROGRAM = "crannog.rpc.nursery"
ROOM = 2048
"""Bytes of the parent's command line: its children write their own there."""
PATIENCE = 30.0
"""Seconds in which it must answer. It takes milliseconds, and 0.2 s for the first time."""
GRACE = 2.0
"""Seconds after SIGTERM."""


class RpcChild:
    """An RPC process that this daemon had started. It is known by its pidfd: no signal can reach another process."""

    def __init__(self, pid: int, pidfd: int, starter: int) -> None:
        """`starter` is the pipe whose end tells the process that crannogd is gone."""
        self.pid = pid
        self._pidfd = pidfd
        self._starter = starter
        self._end = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._note_end)

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        os.close(self._starter)
        self._end.set()

    @property
    def has_ended(self) -> bool:
        """Whether its end has been heard of."""
        return self._end.is_set()

    def send_signal(self, number: int) -> None:
        """Send a signal; one that has ended gets none."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._end.wait()

    async def end(self) -> None:
        """End it, by force when it does not end by itself, and wait."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE):
                await self.wait()
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            await self.wait()


@dataclass
class _Request:
    """A start that is asked for."""

    birth: Birth
    log_path: str
    is_wanted: bool = True
    """Whether somebody waits for it still."""


class NurseryLink:
    """Has RPC processes started. Their parent is started for the first of them, and again when it has ended."""

    def __init__(self, log_path: str, environment: Mapping[str, str]) -> None:
        """`log_path` is where the parent complains."""
        self._log_path = log_path
        self._environment = environment
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._control: socket.socket | None = None

    async def bear(self, place: Place, environment: Mapping[str, str], log_path: str) -> RpcChild:
        """Start the RPC process of a VM, with that environment, and a new log as its stderr. Raises RpcError.

        When this is cancelled, the process ends, or does not begin.
        """
        request = _Request(Birth(place, environment), log_path)
        task = asyncio.ensure_future(self._bear(request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            request.is_wanted = False
            task.add_done_callback(_give_up)
            raise

    async def close(self) -> None:
        """End the parent. Its children go on."""
        process = self._process
        if self._control:
            self._control.close()
        if process:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await process.wait()
        self._discard()
        if process:
            await process.wait()

    async def _bear(self, request: _Request) -> RpcChild:
        vm = request.birth.place.vm
        try:
            async with self._turn:
                child = await self._ask_twice(request)
                if not request.is_wanted:  # the next one may be the same VM's, and finds nobody at its socket
                    child.send_signal(signal.SIGKILL)
                    await child.wait()
                return child
        except (ConnectionError, EOFError, TimeoutError) as error:
            raise RpcError(
                f"the RPC process of {vm} cannot be started: the process that starts them "
                f"does not answer; see {self._log_path}"
            ) from error
        except OSError as error:
            raise RpcError(f"the RPC process of {vm} cannot be started: {error.strerror}") from error

    async def _ask_twice(self, request: _Request) -> RpcChild:
        try:
            return await self._ask(request)
        except (ConnectionError, EOFError):  # it was killed: a child that it may have had does not begin
            return await self._ask(request)

    async def _ask(self, request: _Request) -> RpcChild:
        """Ask for one child. Raises ConnectionError, EOFError when the parent has ended, other OSErrors."""
        control = self._control or await self._start()
        with contextlib.ExitStack() as ours:
            stdin, starter = os.pipe()
            ours.callback(os.close, stdin)
            with contextlib.ExitStack() as unless_born:
                unless_born.callback(os.close, starter)
                log = os.open(request.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                ours.callback(os.close, log)
                pid, pidfd = await self._exchange(control, request.birth, [stdin, log])
                unless_born.pop_all()
        if request.is_wanted:
            with contextlib.suppress(BrokenPipeError):  # its end is heard of by its pidfd
                os.write(starter, messages.GO)
        return RpcChild(pid, pidfd, starter)

    async def _exchange(self, control: socket.socket, birth: Birth, fds: list[int]) -> tuple[int, int]:
        """Return the child's number and pidfd. After a request without an answer the parent is of no use."""
        try:
            async with asyncio.timeout(PATIENCE):
                number, pidfds = await _exchange(control, birth, fds)
        except BaseException:
            self._discard()
            raise
        if number > 0 and not pidfds:
            number = -errno.EMFILE  # the kernel leaves out what we may not open (unix(7))
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return number, pidfds[0]

    async def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        log = -1
        try:
            log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", PROGRAM, " " * ROOM),
                stdin=theirs.fileno(),
                stdout=DEVNULL,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if log >= 0:
                os.close(log)
        ours.setblocking(False)
        self._control = ours
        return ours

    def _discard(self) -> None:
        """Have nothing more to do with the parent there is."""
        if self._control:
            self._control.close()
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._process = self._control = None


async def _exchange(control: socket.socket, birth: Birth, fds: list[int]) -> tuple[int, list[int]]:
    """Send a request; return the answer (see nursery_messages)."""
    body = birth.encode()
    socket.send_fds(control, [messages.HEADER.pack(len(body))], fds)
    await asyncio.get_running_loop().sock_sendall(control, body)
    await _until_readable(control)
    answer, pidfds, _, _ = socket.recv_fds(control, messages.ANSWER.size, 1, socket.MSG_CMSG_CLOEXEC)
    if len(answer) < messages.ANSWER.size:
        raise EOFError
    (number,) = messages.ANSWER.unpack(answer)
    return number, pidfds


async def _until_readable(source: socket.socket) -> None:
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(source, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(source)


def _give_up(task: "asyncio.Task[RpcChild]") -> None:
    """End a process that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().send_signal(signal.SIGKILL)
