"""Running the tools that make images, with their failures as sentences."""

import asyncio
import errno
import os

from crannog.errors import StorageError

TIMEOUT = 600
"""Seconds after which a tool is considered stuck: copying an image is the longest thing asked of one."""


async def run_tool(purpose: str, *command: str) -> None:
    """Run `command`; raise StorageError beginning with `purpose` when it fails, and end it when cancelled."""
    await _run(purpose, command, asyncio.subprocess.DEVNULL)


async def read_tool(purpose: str, *command: str) -> bytes:
    """Run `command` and return what it prints; raises what `run_tool` raises."""
    return await _run(purpose, command, asyncio.subprocess.PIPE)


async def _run(purpose: str, command: tuple[str, ...], output: int) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise StorageError(f"{purpose}: {command[0]} is not installed; 'crannog doctor' names the package") from None
    try:
        async with asyncio.timeout(TIMEOUT):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        raise StorageError(f"{purpose}: {command[0]} did not finish within {TIMEOUT} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = stderr.decode(errors="replace").strip().splitlines() or [
            f"{command[0]} ended with {process.returncode}"
        ]
        # The first line is the cause; what follows from it comes after.
        raise StorageError(f"{purpose}: {lines[0]}{space_hint(stderr.decode(errors='replace'))}")
    return stdout or b""


def space_hint(reason: str) -> str:
    """Return the next step when `reason` is about a full disk, else nothing."""
    is_full = os.strerror(errno.ENOSPC) in reason or os.strerror(errno.EDQUOT) in reason
    return "; free some space on that disk and try again" if is_full else ""
