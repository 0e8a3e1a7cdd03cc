"""crannog show, crannog screenshot: what a VM shows, on this desktop or in a file."""

import os

from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import refuse_host, run
from crannog.client.connection import Client
from crannog.errors import DisplayError, UsageError

SHOW = Command(
    "crannog show",
    "Open the displays of a running VM that were closed: its windows, or its emulated screen.",
    Operand("vm", "VM", "the running VM"),
    Option("--here", help="show VMs on this desktop from now on: the one that DISPLAY and XAUTHORITY name"),
    examples="  crannog show other-os\n  crannog show --here other-os",
)
SCREENSHOT = Command(
    "crannog screenshot",
    "Save a picture of what a running VM shows: of its windows when it has some, else of its emulated screen.",
    Operand("vm", "VM", "the running VM"),
    Operand("file", "FILE", "where to save it, as a PNG image"),
    Option("--windows", help="of its windows, or not at all"),
    Option("--screen", help="of its emulated screen, or not at all"),
    examples="  crannog screenshot other-os screen.png\n  crannog screenshot --windows work windows.png",
)


def _show(options: Values) -> None:
    refuse_host(options.vm)
    payload = _describe_desktop() if options.here else ""
    Client().call("crannog.vm.Show", options.vm, payload=payload.encode())


def _describe_desktop() -> str:
    display = os.environ.get("DISPLAY", "")
    if not display:
        raise DisplayError("there is no desktop here: the variable DISPLAY is not set")
    authority = os.environ.get("XAUTHORITY", "") or os.path.expanduser("~/.Xauthority")
    return f"DISPLAY={display}\nXAUTHORITY={authority}\n"


def _screenshot(options: Values) -> None:
    from crannog.cli.picture_sources import take_picture, take_screen, take_windows

    refuse_host(options.vm)
    if options.windows and options.screen:
        raise UsageError("a picture is of windows or of a screen; leave out --windows or --screen")
    take = take_windows if options.windows else take_screen if options.screen else take_picture
    picture = take(Client(), options.vm)
    try:
        with open(options.file, "wb") as file:
            file.write(picture)
    except OSError as error:
        raise UsageError(f"the picture cannot be saved as {options.file}: {error.strerror}") from error


def main_show(arguments: list[str]) -> int:
    """Run crannog show."""
    return run(SHOW, _show, arguments)


def main_screenshot(arguments: list[str]) -> int:
    """Run crannog screenshot."""
    return run(SCREENSHOT, _screenshot, arguments)
