"""Run one command in a guest that nobody uses yet, so that the first one that matters finds everything loaded.

`python -m crannog.rpc.warm_up SOCKET`, SOCKET being that of the VM's RPC process. A process of its own, because what it
reads comes from the guest; nothing of that is looked at.
"""

import os
import sys

from crannog.client.rpc import run_command
from crannog.errors import RpcError

USER, COMMAND = "root", "echo"
"""Not the user that commands run as by default: the shell that is ready for that one is not to be used up."""


def main(arguments: list[str]) -> int:
    """Run the command; return 0, or 1 when the guest could not be reached."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        run_command(arguments[0], USER, COMMAND, null, null, null)
    except RpcError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
