"""How a signal ends what serves a VM: where it waits, so that nothing is left half done."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crannog.rpc.qrexec_ending import Ending
from tests.unit.rpc_world import wait_until

TWICE = """
import os, signal, sys
from crannog.rpc import vm_process
from crannog.rpc.place import Place

close = vm_process.QrexecDoor.close

def close_under_fire(door):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    close(door)

vm_process.QrexecDoor.close = close_under_fire
sys.exit(vm_process.run(Place("work", sys.argv[1], sys.argv[2])))
"""


def test_it_ends_only_where_it_waits() -> None:
    ending, poll = Ending(), select.poll()
    assert ending.wait(poll, 0) == []
    ending.request(4)  # no SystemExit here: something else is being done
    with pytest.raises(SystemExit) as end:
        ending.wait(poll, None)
    assert end.value.code == 4
    with pytest.raises(SystemExit):
        ending.during(lambda: pytest.fail("it does not wait any more"))


def test_it_ends_while_it_waits() -> None:
    ending = Ending()
    with pytest.raises(SystemExit) as end:
        ending.during(lambda: ending.request(5))
    assert end.value.code == 5


@pytest.mark.parametrize("has_channel", [True, False])
def test_signals_during_the_end_leave_no_socket(tmp_path: Path, *, has_channel: bool) -> None:
    channel, path = str(tmp_path / "channel"), tmp_path / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(channel)
        if has_channel:
            listener.listen(1)
        with subprocess.Popen([sys.executable, "-c", TWICE, channel, str(path)], stderr=subprocess.PIPE) as process:
            wait_until(path.exists)
            if has_channel:
                listener.accept()[0].close()  # the VM ends at the same moment
            else:
                os.kill(process.pid, signal.SIGTERM)
            assert process.stderr
            assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    assert not path.exists()
