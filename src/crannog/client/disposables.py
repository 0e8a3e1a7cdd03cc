"""Disposables for programs: a VM for one piece of work, and nothing of it afterwards (docs/untrusted.md).

    async with disposable(template="untrusted") as vm:
        await vm.write("/tmp/in.pdf", data)
        result = await vm.run(["pdftotext", "/tmp/in.pdf", "-"], timeout=60)

Needs nothing but the standard library. What comes from the VM is bytes that somebody hostile may have chosen.
"""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from crannog.client.call import OUTPUT_MAX, run_call
from crannog.client.connection import Client
from crannog.client.leases import Lease, create_leased
from crannog.client.rpc import is_served
from crannog.config import Paths
from crannog.errors import RpcError, UsageError, VMNotHaltedError

DEFAULT_TEMPLATE = "dom0"
SERVED_PATIENCE = 10.0
"""Seconds in which the RPC process of a disposable that somebody else starts must be there."""


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (128 and more: a signal), and what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Disposable:
    """A disposable in use."""

    def __init__(self, paths: Paths, name: str) -> None:
        self.name = name
        self._paths = paths

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes | str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as in subprocess
        user: str = "DEFAULT",
        max_output: int = OUTPUT_MAX,
    ) -> Result:
        """Run a command, words or a line for the shell, and return how it ended; any exit code is a result.

        The command reads `stdin`, text as UTF-8, and then the end of it.

        Raises TimeoutError after `timeout` seconds, and the command is ended then, as when the task is cancelled.
        Raises RpcError when the VM is gone, or writes more than `max_output` bytes.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        async with asyncio.timeout(timeout):
            output = await run_call(self._paths.rpc_socket(self.name), f"{user}:{line}", data, max_output)
        return Result(output.exit_code, bytes(output.stdout), bytes(output.stderr))

    async def write(self, path: str, data: bytes, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write a file in the VM. Raises RpcError with what the VM says when that fails, and what `run` raises."""
        await self._need(["sh", "-c", 'cat >"$0"', path], data, timeout, f"{path} was not written")

    async def read(
        self,
        path: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        max_size: int = OUTPUT_MAX,
    ) -> bytes:
        """Return the content of a file in the VM; raises what `write` raises."""
        return await self._need(["cat", "--", path], b"", timeout, f"{path} was not read", max_size)

    async def _need(
        self, words: list[str], data: bytes, seconds: float | None, failure: str, most: int = OUTPUT_MAX
    ) -> bytes:
        result = await self.run(words, stdin=data, timeout=seconds, max_output=most)
        if result.exit_code:
            said = "".join(c if c.isprintable() else "_" for c in result.stderr[:200].decode("ascii", "replace"))
            raise RpcError(f"{self.name}: {failure}: exit code {result.exit_code}, {said or 'nothing said'}")
        return result.stdout


@contextlib.asynccontextmanager
async def disposable(
    template: str = "", *, network: bool = False, home: str | None = None
) -> AsyncIterator[Disposable]:
    """Have a new disposable, ready to run commands, for the block; it is ended and removed afterwards, unwaited for.

    `template` is the AppVM that it starts from; empty: the system's default_dispvm. Without `network` it has no netvm
    from before its first command on. `home` is the CRANNOG_HOME to work in. Raises what crannogd refuses with, such as
    VMNotFoundError or MemoryRefusedError, each one sentence; DaemonError when there is no crannogd.
    """
    if template == DEFAULT_TEMPLATE:
        raise UsageError("dom0 is no template of disposables; leave the template out for the system's default one")
    paths = Paths(home)
    client = Client(paths)
    lease = await _create(client, template or DEFAULT_TEMPLATE)
    try:
        if not network:
            await asyncio.to_thread(client.text, "admin.vm.property.Set", lease.vm, "netvm", "")
        await _start(client, lease)
        yield Disposable(paths, lease.vm)
    finally:
        await asyncio.shield(asyncio.to_thread(lease.close))


async def _create(client: Client, template: str) -> Lease:
    """Return a new disposable in use. One that nobody waits for any longer is let go of as soon as it is there."""
    pool = ThreadPoolExecutor(1)
    creation = pool.submit(create_leased, client, template)
    pool.shutdown(wait=False)
    try:
        return await asyncio.wrap_future(creation)
    except asyncio.CancelledError:
        creation.add_done_callback(_let_go)
        raise


def _let_go(creation: Future[Lease]) -> None:
    if not creation.cancelled() and not creation.exception():
        creation.result().close()


async def _start(client: Client, lease: Lease) -> None:
    """Start it, unless it runs already: then it was started in advance, or that goes on."""
    path = client.paths.rpc_socket(lease.vm)
    if is_served(path):
        return
    with contextlib.suppress(VMNotHaltedError):
        await asyncio.to_thread(client.text, "crannog.vm.Start", lease.vm, "wait")
    async with asyncio.timeout(SERVED_PATIENCE):
        while not is_served(path):  # noqa: ASYNC110 - nobody tells when a socket is there
            await asyncio.sleep(0.02)
