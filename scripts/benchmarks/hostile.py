"""What a call of a VM costs while another VM's guest floods its own RPC process, beside the same call in quiet.

No VM is started: both RPC processes are real, the calling VM has our guests' agent and a relay in QEMU's place; the
hostile guest is a process that writes without end. With two processors, flood and call share them.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes import short_folder
from tests.unit.guest_peer import policy_stand_in
from tests.unit.hostile_floods import FLOODS
from tests.unit.hostile_world import HostileGuest
from tests.unit.rpc_world import World

from benchmarks.harness import Figure, Row, summarize
from crannog.client.rpc import run_command

CALLS = 60
NAMES = ("rubbish", "triggers of one ident", "entries of the guest DB", "triggers whose answers are not read")
SLOWER = 5
"""A call over one in quiet: the flooded process, who floods it and the call have two processors."""


@contextmanager
def flooding(guest: HostileGuest, name: str) -> Iterator[None]:
    """Have a process of its own flood the guest's RPC process."""
    flood = FLOODS[name]
    child = os.fork()
    if not child:
        with guest.flood(flood.piece, flood.reads):
            signal.pause()
    try:
        time.sleep(0.2)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def time_calls(world: World) -> Figure:
    """Return what a call takes that does nothing."""
    null = os.open(os.devnull, os.O_RDWR)
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        code = run_command(world.rpc_socket, "DEFAULT", "true", null, null, null)
        seconds.append(time.perf_counter() - began)
        if code:
            raise RuntimeError(f"a call ended with {code}")
    os.close(null)
    return summarize(seconds)


def measure(runs: int) -> list[Row]:
    """Measure all."""
    del runs  # CALLS calls each
    rows = []
    with short_folder() as home, short_folder() as other, policy_stand_in(Path(home)):
        (home / "log").mkdir()
        guest, world = HostileGuest(home), World(other)
        try:
            guest.start()
            world.start_all()
            for name in NAMES:
                quiet = time_calls(world)
                with flooding(guest, name):
                    value = time_calls(world)
                guest.recover()
                rows.append(Row(f"call beside a flood: {name}", value, "in quiet", quiet, SLOWER))
        finally:
            world.close()
            guest.close()
    return rows
