#!/usr/bin/python3 -s
"""xpra's server with the keyboard that this guest has: own_keyboard.py WORDS... runs `xpra WORDS...`.

xpra gives a display the keyboard of whoever attaches, so that the letters of the host's keyboard arrive. Here the
display keeps its layout, and keys arrive by their place, as with a keyboard that is plugged in. It is made for xpra
3.1, the version of Debian 12. session.py runs it when the VM has a layout of its own.
"""

import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

from xpra.scripts.main import main

MODULE = "xpra.x11.server_keyboard_config"


class Changer(importlib.abc.MetaPathFinder):
    """Changes MODULE as soon as it is imported, which it cannot be before xpra has opened its display."""

    def find_spec(self, name: str, *_more: object) -> Any:  # noqa: ANN401, D102  what a finder does
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        loader.exec_module = execute_and_change
        return spec


def change(module: Any) -> None:  # noqa: ANN401  xpra has no types
    """Have codes of keys taken as they come (xpra's --keyboard-raw), and the layout left alone."""
    module.do_set_keymap = lambda *_wanted: None
    # What a client wants of it has no effect.
    module.KeyboardConfig.xkbmap_raw = property(lambda _config: True, lambda _config, _wanted: None)


if __name__ == "__main__":
    sys.meta_path.insert(0, Changer())
    sys.exit(main("xpra", ["xpra", *sys.argv[1:]]))
