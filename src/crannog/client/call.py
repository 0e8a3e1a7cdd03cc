"""One command in a VM, for asyncio: its input and its output are held in memory (format: crannog/rpc/frames.py)."""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field

from crannog.client.rpc import (
    BODY_MAX,
    COMMAND_MAX,
    DATA_EXIT_CODE,
    DATA_STDERR,
    DATA_STDIN,
    DATA_STDOUT,
    EXEC_CMDLINE,
    HANDSHAKE_TIMEOUT,
    HELLO,
    LOCAL_HEADER,
    LOCAL_VERSION,
    NUMBER,
)
from crannog.errors import RpcError, UsageError

OUTPUT_MAX = 64 * 2**20
"""Bytes of output and error output together that are taken unless the caller says otherwise."""


@dataclass
class Output:
    """What a command has written so far, and its exit code once it has ended."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    exit_code: int = -1


async def run_call(path: str, line: str, data: bytes, max_output: int) -> Output:
    """Run `USER:COMMAND` in the VM whose RPC process serves `path`, with `data` as its input.

    Cancelled, it ends the command. Raises UsageError for a line that is too long or has a zero byte, RpcError when the
    connection breaks off or more than `max_output` bytes come.
    """
    command = os.fsencode(line)
    if len(command) > COMMAND_MAX or b"\0" in command:
        raise UsageError(f"a command has at most {COMMAND_MAX} bytes, none of them zero; this one has {len(command)}")
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise RpcError(f"the VM is not running, or has no agent ({path}: {error})") from error
    feeding: asyncio.Future[None] | None = None
    try:
        await _greet(reader, writer, path)
        writer.write(LOCAL_HEADER.pack(EXEC_CMDLINE, 8 + len(command) + 1) + bytes(8) + command + b"\0")
        feeding = asyncio.ensure_future(_feed(writer, data))
        return await _collect(reader, path, max_output)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise RpcError(f"the connection to the VM's RPC process broke off ({path}: {error})") from error
    finally:
        if feeding:
            feeding.cancel()
            await asyncio.wait([feeding])
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            kind, _ = await _read_message(reader, path)
    except TimeoutError:
        raise RpcError(f"the VM's RPC process does not answer ({path})") from None
    if kind != HELLO:
        raise RpcError(f"{path} is not the socket of an RPC process")
    writer.write(LOCAL_HEADER.pack(HELLO, NUMBER.size) + NUMBER.pack(LOCAL_VERSION))


async def _feed(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send the input and its end; a command that does not take it is no error here."""
    with contextlib.suppress(OSError):
        for at in range(0, len(data), BODY_MAX):
            part = data[at : at + BODY_MAX]
            writer.write(LOCAL_HEADER.pack(DATA_STDIN, len(part)) + part)
            await writer.drain()
        writer.write(LOCAL_HEADER.pack(DATA_STDIN, 0))
        await writer.drain()


async def _collect(reader: asyncio.StreamReader, path: str, max_output: int) -> Output:
    output = Output()
    outputs = {DATA_STDOUT: output.stdout, DATA_STDERR: output.stderr}
    while output.exit_code < 0:
        kind, untrusted_body = await _read_message(reader, path)
        if kind in outputs:
            if len(output.stdout) + len(output.stderr) + len(untrusted_body) > max_output:
                raise RpcError(f"the command has written more than {max_output} bytes; allow more with max_output")
            outputs[kind] += untrusted_body
        elif kind == DATA_EXIT_CODE and len(untrusted_body) == NUMBER.size:
            output.exit_code = NUMBER.unpack(untrusted_body)[0]
    return output


async def _read_message(reader: asyncio.StreamReader, path: str) -> tuple[int, bytes]:
    kind, length = LOCAL_HEADER.unpack(await reader.readexactly(LOCAL_HEADER.size))
    if length > BODY_MAX:
        raise RpcError(f"the other end of {path} is no RPC process")
    return kind, await reader.readexactly(length)
