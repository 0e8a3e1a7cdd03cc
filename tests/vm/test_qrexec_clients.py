"""A program as others write it, like qrexec-client, calls a real VM by its name and its number."""

import os
from pathlib import Path

import pytest

from tests.unit.qrexec_world import STDIN, Server, ask, client, close_all
from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm


def test_a_client_of_another_make(shared_home: Home, running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCHAN_SOCKET_DIR", "/var/run/vchan")
    folder = Path("/var/run/vchan")
    folder.mkdir(exist_ok=True)
    xid = int(shared_home.ok("qvm-prefs", running, "xid"))
    run = Path(shared_home.path) / "run"
    wait_until((run / f"qrexec.{xid}").exists, "its socket is there")
    try:
        for name in (str(xid), running):
            data = os.urandom(1 << 20)
            domain, port = ask(client(run / f"qrexec.{name}"), b"DEFAULT:wc -c; hostname; exit 3")
            assert domain == xid
            call = Server(folder, 0, xid, port).accept()
            assert call.hello(4) == 4
            for at in range(0, len(data), 65536):
                call.send(STDIN, data[at : at + 65536])
            call.send(STDIN)
            assert call.outcome() == (f"{len(data)}\n{running}\n".encode(), b"", 3)
    finally:
        close_all()
    shared_home.ok("qvm-kill", running)
    wait_until(lambda: not list(run.glob("qrexec.*")), "its sockets are gone with it")
