"""The program behind the service admin.vm.Console: it joins a caller's input and output to a VM's console.

Who calls and for which VM, the environment says (qrexec: QREXEC_REQUESTED_TARGET). Ends with 200 when somebody else is
at the console.
"""

from __future__ import annotations

import os

from crannog.cli.qvm_console import open_console
from crannog.cli.tool import complain, end
from crannog.errors import CrannogError, UsageError

PROGRAM = "crannog-rpc-console"


def serve(vm: str) -> int:
    """Join this process's standard input and output to the console of `vm`; return the exit code."""
    if not vm:
        raise UsageError("QREXEC_REQUESTED_TARGET does not say which VM's console is wanted")
    return open_console(PROGRAM, vm, is_terminal=False)


def main() -> None:
    """Run the service."""
    try:
        end(serve(os.environ.get("QREXEC_REQUESTED_TARGET", "")))
    except CrannogError as error:
        complain(PROGRAM, str(error))
        end(error.exit_code)
    except KeyboardInterrupt:
        end(130)
