"""Has a guest that nobody uses yet do what the first use of it will need, in a process of its own (rpc.warm_up)."""

import asyncio
import contextlib
import sys

COMMAND_TIMEOUT = 20.0
"""Seconds that a guest has for a command that does nothing."""
SESSION_TIMEOUT = 80.0
"""Seconds where a session is waited for as well, which by itself gives up after 60 (docs/guest.md)."""


async def exercise(path: str, user: str = "") -> None:
    """Run a command in the guest behind an RPC process's socket; one that does not answer is given up after a while.

    With a `user`, that one's session of windows is waited for before.
    """
    command = (sys.executable, "-m", "crannog.rpc.warm_up", path, *([user] if user else []))
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=null)
    try:
        async with asyncio.timeout(SESSION_TIMEOUT if user else COMMAND_TIMEOUT):
            await process.wait()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if not isinstance(error, TimeoutError):
            raise
