"""Homes with one VM, for what a desktop shows of real guests."""

import contextlib
from collections.abc import Iterator

from tests.gui.desktop import Desktop
from tests.vm.home import Home

GRAPHICAL = 1000
"""MiB that a guest with the graphical session needs."""


@contextlib.contextmanager
def home_with(
    desktop: Desktop, name: str, *words: str, memory: int, template: tuple[str, ...] = (), is_shown: bool = False
) -> Iterator[Home]:
    """Give a home with one halted VM, made by `qvm-create WORDS NAME`; in the end no window may be left on the desktop.

    `template` are the words for `crannog template build`, which is run before. The daemon shows VMs on the desktop by
    itself if `is_shown`; else it knows of none.
    """
    home = Home()
    if is_shown:
        home.env["DISPLAY"] = desktop.display
    try:
        if template:
            home.ok("crannog", "template", "build", *template)
        home.ok("qvm-create", *words, name)
        home.ok("qvm-prefs", name, "memory", str(memory))
        yield home
    finally:
        home.run("qvm-kill", name)
        home.close()
        desktop.wait_for_none()
