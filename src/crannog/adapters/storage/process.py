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


async def read_tool(purpose: str, *command: str, answers: tuple[int, ...] = ()) -> bytes:
    """Run `command` and return what it prints; raises what `run_tool` raises.

    `answers` are exit codes other than 0 that are no failure.
    """
    return await _run(purpose, command, asyncio.subprocess.PIPE, answers)


async def _run(purpose: str, command: tuple[str, ...], output: int, answers: tuple[int, ...] = ()) -> bytes:
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
    if process.returncode and process.returncode not in answers:
        raise complaint(purpose, command, process.returncode, stderr.decode(errors="replace"))
    return stdout or b""


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
