"""One call into the guest for the agent display, as a process: its standard input and output are the service's.

`forwarder_call RPC-SOCKET SERVICE` calls as the VM's default user, and ends with the service's exit code; 125 when the
VM's RPC process does not answer. A process of its own can be ended at any moment, which ends the call.
"""

import os
import signal
import sys

from crannog.client.rpc import run_command
from crannog.errors import RpcError

EXIT_TROUBLE = 125


def call(rpc_path: str, service: str) -> int:
    """Call a service of the guest; return its exit code. What it complains of is dropped: it is the guest's text."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        # The display has to be there before a session can be: the service itself waits for what it needs.
        return run_command(rpc_path, "DEFAULT", f"nogui:QUBESRPC {service} dom0", 0, 1, nowhere)
    except RpcError:
        return EXIT_TROUBLE
    finally:
        os.close(nowhere)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(call(sys.argv[1], sys.argv[2]))
