"""The daemon's link to the RPC process of one VM (asyncio)."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

from crannog.core.announcement import PREFIX, AgentStatus
from crannog.errors import ProtocolError, RpcError
from crannog.rpc import frames

RETRY_PAUSE = 0.02


class RpcLink:
    """Follows the status of a VM's agent, and passes requests on.

    `async for status in link` gives the current status, then each change, and ends when the RPC process has
    gone: with the VM, or killed. A new `connect` then follows its successor. Usable as an async context
    manager.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Connect and start to follow; the process may appear within `timeout` seconds.

        Raises RpcError when it does not.
        """
        await self.close()
        self._reader, self._writer = await _open(self.path, timeout)
        self._writer.write(frames.encode_message(frames.STATUS_FOLLOW))

    async def __aiter__(self) -> AsyncIterator[AgentStatus]:
        if self._reader is None:
            raise RpcError(f"the link to {self.path} is not connected")
        while True:
            try:
                kind, untrusted_body = await _read_message(self._reader)
            except (OSError, EOFError):
                return
            if kind == frames.STATUS_FOLLOW:
                yield AgentStatus.parse(untrusted_body)

    def tell_number(self, number: int) -> None:
        """Say what number the hypervisor gave the VM's domain; other programs can call the VM then."""
        if self._writer is not None and number > 0:
            self._writer.write(frames.encode_message(frames.DOMAIN_NUMBER, frames.NUMBER.pack(number)))

    def write_entry(self, path: str, value: bytes | None) -> None:
        """Set an entry of the VM's guest DB, or with None remove it. A link that is not connected does nothing."""
        if self._writer is not None and value is None:
            self._writer.write(frames.encode_message(frames.GUESTDB_REMOVE, path.encode("ascii")))
        elif self._writer is not None and value is not None:
            self._writer.write(frames.encode_message(frames.GUESTDB_WRITE, path.encode("ascii") + b"\0" + value))

    async def list_entries(self, prefix: str, timeout: float = 10.0) -> dict[str, bytes]:  # noqa: ASYNC109
        """Return the entries of the guest DB whose paths begin so: what the guest has written there is untrusted.

        Raises RpcError when there is no RPC process, or it does not answer.
        """
        return await self._ask(b"", prefix, timeout)

    async def introduce(self, number: int, entries: Mapping[str, bytes], timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Say the number of the VM's domain and what its guest DB holds; return when XenStore, if any, has it.

        Raises RpcError when there is no RPC process, or it does not answer.
        """
        said = frames.encode_message(frames.DOMAIN_NUMBER, frames.NUMBER.pack(number))
        for path, value in entries.items():
            said += frames.encode_message(frames.GUESTDB_WRITE, path.encode("ascii") + b"\0" + value)
        await self._ask(said, PREFIX.decode("ascii"), timeout)

    async def _ask(self, said: bytes, prefix: str, timeout: float) -> dict[str, bytes]:  # noqa: ASYNC109
        """Say something, and then ask for entries: all that was said has been done when they come."""
        reader, writer = await _open(self.path, timeout)
        untrusted_entries: dict[str, bytes] = {}
        try:
            writer.write(said + frames.encode_message(frames.GUESTDB_LIST, prefix.encode("ascii")))
            async with asyncio.timeout(timeout):
                while (message := await _read_message(reader))[0] == frames.GUESTDB_WRITE:
                    path, _, untrusted_value = message[1].partition(b"\0")
                    untrusted_entries[path.decode("ascii", "replace")] = untrusted_value
        except (OSError, EOFError) as error:
            raise RpcError(f"the RPC process at {self.path} did not answer: {error}") from error
        finally:
            await _close(writer)
        return untrusted_entries

    async def power_off(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Have the guest asked to shut down; its agent does that by itself then.

        Raises RpcError when there is no RPC process, or no agent that could be asked.
        """
        reader, writer = await _open(self.path, timeout)
        try:
            writer.write(frames.encode_message(frames.POWEROFF))
            async with asyncio.timeout(timeout):
                _, untrusted_body = await _read_message(reader)
        except (OSError, EOFError) as error:
            raise RpcError(f"the RPC process at {self.path} did not answer: {error}") from error
        finally:
            await _close(writer)
        if untrusted_body != frames.NUMBER.pack(1):
            raise RpcError("the VM has no agent that could shut it down")

    async def close(self) -> None:
        """End the link. The RPC process and the calls that it serves go on."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            await _close(writer)


async def _open(path: str, timeout: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: ASYNC109
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await _shake_hands(path)
                except (OSError, EOFError):
                    await asyncio.sleep(RETRY_PAUSE)
    except TimeoutError:
        raise RpcError(f"no RPC process answers at {path} (waited {timeout:.0f} s)") from None


async def _shake_hands(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        kind, _ = await _read_message(reader)
        if kind != frames.HELLO:
            raise ProtocolError(f"{path} is not the socket of an RPC process")
    except BaseException:
        writer.close()
        raise
    writer.write(frames.encode_message(frames.HELLO, frames.NUMBER.pack(frames.LOCAL_VERSION)))
    return reader, writer


async def _read_message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the next message. Raises ProtocolError; EOFError at the end."""
    kind, length = frames.LOCAL_HEADER.unpack(await reader.readexactly(frames.LOCAL_HEADER.size))
    if length > frames.BODY_MAX:
        raise ProtocolError(f"an RPC process sent a message of {length} bytes")
    return kind, await reader.readexactly(length)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return
