"""What an RPC process serves, and where: its options, and the command line that says them."""

import os
import sys
from typing import NamedTuple

PROGRAM = "crannog.rpc.vm_process"
DEFAULT_USER = "DEFAULT"
"""Whom the agent decides on."""


class Place(NamedTuple):
    """What a process serves, and where."""

    vm: str
    channel_path: str
    listen_path: str
    default_user: str = DEFAULT_USER
    uuid: str = ""
    home: str = ""
    """The home whose policy decides on the guest's calls; without one they are refused."""
    qrexec_folder: str = ""
    """Where other programs look for the VM's qrexec socket."""

    @property
    def door_folder(self) -> str:
        """The folder of that socket: beside our own, unless another one was chosen."""
        return self.qrexec_folder or os.path.dirname(self.listen_path)

    def command(self) -> list[str]:
        """Return the command line of a process that serves this, and ends with crannogd until the channel is there."""
        words = [sys.executable, "-I", "-m", PROGRAM, "--name", self.vm, "--starter-on-stdin"]
        words += ["--channel", self.channel_path, "--listen", self.listen_path, "--default-user", self.default_user]
        for option, value in (("--home", self.home), ("--uuid", self.uuid), ("--qrexec-dir", self.qrexec_folder)):
            words += [option, value] if value else []
        return words
