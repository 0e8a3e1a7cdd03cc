"""Run one command in a guest that nobody uses yet, so that the first one that matters finds everything loaded.

`python -m crannog.rpc.warm_up SOCKET [USER]`, SOCKET being that of the VM's RPC process. With a USER it waits for that
user's session of windows first. A process of its own, because what it reads comes from the guest; nothing of that is
looked at.
"""

import os
import sys

from crannog.client.rpc import run_command
from crannog.errors import RpcError

USER, COMMAND = "root", "echo"
"""Not the user that commands run as by default: the shell that is ready for that one is not to be used up."""
SESSION = "QUBESRPC qubes.WaitForSession+ dom0"
"""Our guests' service (docs/guest.md); it reads the user."""


def main(arguments: list[str]) -> int:
    """Wait for the session, if there is to be one, and run the command; return 0, or 1 if the guest was not reached."""
    path, *users = arguments
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for user in users:
            _wait_for_session(path, user, null)
        run_command(path, USER, COMMAND, null, null, null)
    except RpcError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _wait_for_session(path: str, user: str, null: int) -> None:
    theirs, ours = os.pipe()
    os.write(ours, os.fsencode(user) + b"\n")
    os.close(ours)
    try:
        run_command(path, USER, SESSION, theirs, null, null)
    finally:
        os.close(theirs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
