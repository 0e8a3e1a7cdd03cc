"""The logs of a VM: what it wrote to its console, and what its RPC process had to say."""

import contextlib
import os

from crannog.config import Paths


def discard_logs(paths: Paths, vm: str) -> None:
    """Delete the logs of a VM that was removed."""
    for path in (paths.console_log(vm), paths.rpc_log(vm)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
