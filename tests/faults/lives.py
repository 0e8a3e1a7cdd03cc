"""Programs of the rounds, each a process of its own: `lives.py live HOME LANE ROUNDS` and `lives.py read HOME LANES`.

What they say at their end is one line of JSON.
"""

import contextlib
import json
import sys
import time

from crannog.client.connection import Client
from crannog.config import Paths
from crannog.errors import CrannogError, VMNotFoundError

PAUSE = 0.01
"""Seconds between two looks of a reader, so that those who live get some of the processors as well."""


def name_of(lane: str) -> str:
    """Return the name of the VM that a lane makes again and again."""
    return f"brief-{lane}"


def live(client: Client, vm: str) -> None:
    """Lead a VM without a guest through its whole life. Raises what any step raises."""
    client.text("admin.vm.Create.StandaloneVM", "dom0", "", f"name={vm} label=red")
    client.text("admin.vm.property.Set", vm, "virt_mode", "hvm")
    client.text("admin.vm.property.Set", vm, "memory", "64")
    client.text("crannog.vm.Start", vm, "nowait")
    client.call("admin.vm.Kill", vm)
    client.call("admin.vm.Remove", vm)


def live_many(client: Client, vm: str, rounds: int) -> dict[str, object]:
    """Lead so many lives; return how many there were and what went wrong. A VM that is left ends the lane."""
    wrong = []
    for number in range(rounds):
        try:
            live(client, vm)
        except CrannogError as error:
            wrong.append(f"round {number + 1} of {vm}: {type(error).__name__}: {error}")
            break
    return {"rounds": number + 1, "wrong": wrong}


def read(client: Client, vms: list[str]) -> dict[str, object]:
    """Read states until the standard input ends. A VM that does not exist just now is no error, anything else is."""
    import select

    wrong, states, reads = [], set[str](), 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            rows = client.text("admin.vm.List").splitlines()
            states |= {row.partition("state=")[2].split()[0] for row in rows if row.split()[0] in vms}
            reads += 1
            for vm in vms:
                reads += _read_one(client, vm)
            time.sleep(PAUSE)
        except CrannogError as error:
            wrong.append(f"reader: {type(error).__name__}: {error}")
    return {"reads": reads, "wrong": wrong, "states": sorted(states)}


def _read_one(client: Client, vm: str) -> int:
    with contextlib.suppress(VMNotFoundError):
        client.text("admin.vm.CurrentState", vm)
    return 1


def main() -> None:
    kind, home, *words = sys.argv[1:]
    client = Client(Paths(home), may_start_daemon=False)
    if kind == "live":
        said = live_many(client, name_of(words[0]), int(words[1]))
    else:
        said = read(client, [name_of(lane) for lane in words])
    print(json.dumps(said))


if __name__ == "__main__":
    main()
