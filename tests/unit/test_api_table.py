"""Every declared method refuses a wrong destination, argument and payload with the text that clients know."""

from pathlib import Path

import pytest

from crannog.api.framing import Request
from crannog.api.server import Server
from crannog.api.table import METHODS, Access, Destination, Presence, answer
from crannog.errors import ProtocolError, VMNotFoundError
from tests.fakes import Inside, build_inside, template_and_app

# The words that end the names of all methods that change nothing.
READING = (
    "List", "Get", "GetAll", "GetDefault", "Help", "CurrentState", "Info", "Index", "Table", "Screenshot",
    "Diagnose", "Capabilities", "Events", "Stats", "GetSystemInfo", "ListDrivers", "UsageDetails", "ListSnapshots",
    "Available", "Assigned", "Attached", "Check", "FindWaste", "Usage", "GetFiles", "EvalSimple", "EvalGUI",
)  # fmt: skip
NAMES = sorted(METHODS)


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    inside = build_inside(tmp_path)
    template_and_app(inside.registry)
    return inside


def test_the_server_knows_the_methods() -> None:
    assert Server.__module__ == "crannog.api.server"
    assert {"admin.vm.List", "admin.vm.property.Set", "admin.vm.feature.Get", "admin.vm.Create.AppVM"} <= set(NAMES)


def fitting(name: str) -> dict[str, str]:
    """Return a request that keeps to the declaration of `name`."""
    method = METHODS[name]
    return {
        "destination": "work" if method.destination is Destination.VM else "dom0",
        "argument": "x" if method.argument is Presence.REQUIRED else "",
        "payload": "x" if method.payload is Presence.REQUIRED else "",
    }


async def refuse(inside: Inside, name: str, **changes: str) -> str:
    values = {**fitting(name), **changes}
    request = Request(name, values["argument"], "dom0", values["destination"], values["payload"].encode())
    with pytest.raises(ProtocolError) as caught:
        await answer(inside.inventory, request, METHODS[name].family)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].destination is not Destination.ANY])
async def test_wrong_destination(inside: Inside, name: str) -> None:
    if METHODS[name].destination is Destination.ADMIN:
        assert await refuse(inside, name, destination="work") == "expected destination to be AdminVM"
    else:
        assert await refuse(inside, name, destination="dom0") == "expected destination to not be AdminVM"


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].argument is not Presence.OPTIONAL])
async def test_wrong_argument(inside: Inside, name: str) -> None:
    if METHODS[name].argument is Presence.REQUIRED:
        assert await refuse(inside, name, argument="") == "expected an argument"
    else:
        assert await refuse(inside, name, argument="x") == "unexpected argument"


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].payload is not Presence.OPTIONAL])
async def test_wrong_payload(inside: Inside, name: str) -> None:
    if METHODS[name].payload is Presence.REQUIRED:
        assert await refuse(inside, name, payload="") == "expected payload"
    else:
        assert await refuse(inside, name, payload="x") == "unexpected payload"


@pytest.mark.parametrize("name", NAMES)
async def test_unknown_destination(inside: Inside, name: str) -> None:
    values = fitting(name)
    request = Request(name, values["argument"], "dom0", "nobody", values["payload"].encode())
    with pytest.raises(VMNotFoundError, match="'nobody'"):
        await answer(inside.inventory, request, METHODS[name].family)


@pytest.mark.parametrize("name", ["", "admin.vm.list", "admin.vm.List+", "x" * 5000])
async def test_unknown_method(inside: Inside, name: str) -> None:
    with pytest.raises(ProtocolError, match=r"^no such method: '.{0,100}'$"):
        await answer(inside.inventory, Request(name, "", "dom0", "dom0", b""))


@pytest.mark.parametrize("name", NAMES)
def test_what_only_reads_is_marked(name: str) -> None:
    is_reading = name.rpartition(".")[2] in READING or ".CheckWith" in name
    assert (METHODS[name].access == Access.READ) is is_reading


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_does(name: str) -> None:
    assert METHODS[name].help.endswith(".")
