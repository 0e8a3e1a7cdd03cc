"""The desktop on which VMs are shown."""

from pathlib import Path

import pytest

from crannog.display.session import Session
from crannog.errors import DisplayError


@pytest.mark.parametrize(("name", "number"), [(":0", 0), (":99.0", 99), ("unix:3", 3), (":12345", 12345)])
def test_displays_of_this_host(name: str, number: int, tmp_path: Path) -> None:
    session = Session.find({"DISPLAY": name, "HOME": str(tmp_path)})
    assert session == Session(number)
    assert (session.name, session.socket) == (f":{number}", f"/tmp/.X11-unix/X{number}")
    assert session.sockets == {session.socket: session.socket}
    assert session.environment["DISPLAY"] == f":{number}"


@pytest.mark.parametrize("name", ["elsewhere:0", "localhost:10.0", "0", ":", ":x", ":0;rm", ":123456", "[::1]:0"])
def test_what_is_none(name: str) -> None:
    with pytest.raises(DisplayError, match="it is not a display of this host, such as ':0'"):
        Session.find({"DISPLAY": name})


def test_no_desktop() -> None:
    with pytest.raises(DisplayError, match="there is no desktop here to show VMs on: the variable DISPLAY is not set"):
        Session.find({})


def test_the_cookie_is_where_the_environment_says_or_in_the_home(tmp_path: Path) -> None:
    own, other = tmp_path / ".Xauthority", tmp_path / "other"
    own.touch()
    other.touch()
    environment = {"DISPLAY": ":0", "HOME": str(tmp_path)}
    assert Session.find(environment).authority == str(own)
    named = Session.find({**environment, "XAUTHORITY": str(other)})
    assert named.authority == str(other)
    inside = named.environment["XAUTHORITY"]
    assert named.sockets[inside] == str(other)
    assert Session.find({**environment, "XAUTHORITY": "/nowhere"}).authority == ""
