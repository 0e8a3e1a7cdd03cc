"""Running the tools that make images, with their failures as sentences."""

import asyncio
import errno
import os
import subprocess
from typing import BinaryIO, cast

from crannog.errors import StorageError

TIMEOUT = 600
"""Seconds after which a tool is considered stuck: copying an image is the longest thing asked of one."""


async def run_tool(purpose: str, *command: str) -> None:
    """Run `command`; raise StorageError beginning with `purpose` when it fails, and end it when cancelled."""
    await _run(purpose, command)


async def read_tool(purpose: str, *command: str, answers: tuple[int, ...] = ()) -> bytes:
    """Run `command` and return what it prints; raises what `run_tool` raises.

    `answers` are exit codes other than 0 that are no failure.
    """
    return await _run(purpose, command, answers)


async def _run(purpose: str, command: tuple[str, ...], answers: tuple[int, ...] = ()) -> bytes:
    """Run a tool. asyncio's own processes hang for ever when their tasks are cancelled while they begin."""
    with _open_memory("output") as output, _open_memory("complaints") as complaints:
        process = start_tool(purpose, command, output, complaints)
        try:
            async with asyncio.timeout(TIMEOUT):
                await _wait_for(process)
        except TimeoutError:
            raise StorageError(f"{purpose}: {command[0]} did not finish within {TIMEOUT} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                await _wait_for(process)
        if process.returncode and process.returncode not in answers:
            raise complaint(purpose, command, process.returncode, _read(complaints).decode(errors="replace"))
        return _read(output)


def start_tool(
    purpose: str, command: tuple[str, ...], output: BinaryIO, complaints: BinaryIO
) -> "subprocess.Popen[bytes]":
    """Start a tool that writes into two files, and asks nobody anything. Raises StorageError when there is no such."""
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints)
    except FileNotFoundError:
        raise StorageError(f"{purpose}: {command[0]} is not installed; 'crannog doctor' names the package") from None


def _open_memory(name: str) -> BinaryIO:
    """Make a file in memory (memfd_create(2)); unlike a pipe it needs nobody who reads it meanwhile."""
    return cast("BinaryIO", open(os.memfd_create(name), "w+b", buffering=0))


def _read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


async def _wait_for(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process has ended (pidfd_open(2)), and bury it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    process.wait()


def complaint(purpose: str, command: tuple[str, ...], code: int, text: str) -> StorageError:
    """Return the sentence for a tool that ended with `code` and said `text` on stderr."""
    lines = text.strip().splitlines()
    # Warnings come first, then the cause; what follows from it comes after.
    causes = [line.strip() for line in lines if not line.strip().startswith("WARNING")] or lines
    cause = causes[0] if causes else f"{command[0]} ended with {code}"
    return StorageError(f"{purpose}: {cause}{space_hint(text)}")


def space_hint(reason: str) -> str:
    """Return the next step when `reason` is about a full disk, else nothing."""
    is_full = os.strerror(errno.ENOSPC) in reason or os.strerror(errno.EDQUOT) in reason
    return "; free some space on that disk and try again" if is_full else ""
