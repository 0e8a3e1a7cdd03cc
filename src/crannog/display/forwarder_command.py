"""The command line of the xpra client that shows one guest's windows, in its sandbox."""

import os

from crannog.display.look import Look
from crannog.display.sandbox import sandboxed
from crannog.display.session import Session

INSIDE = "/crannog"
"""The folder in the sandbox that holds the guest's socket and our client."""
GUEST_SOCKET = f"{INSIDE}/guest.sock"
_LIBRARY = f"{INSIDE}/lib"
_CLIENT_FILES = (
    "forwarder_client.py",
    "forwarder_dress.py",
    "forwarder_fields.py",
    "forwarder_hello.py",
    "forwarder_packets.py",
    "forwarder_room.py",
    "forwarder_rules.py",
    "forwarder_window.py",
    "titles.py",
)
"""Of this package, the sandbox has these alone."""
_NOWHERE = "/nonexistent"

PING_SECONDS = 2
SILENCE_SECONDS = 8
"""xpra counts this from the first ping that was not answered in time: 12 s of silence at most (docs/display.md)."""

_OFF = (
    "bell",
    "clipboard",
    "file-transfer",
    "forward-xdg-open",
    "global-menus",
    "mdns",
    "mmap",
    "notifications",
    "open-files",
    "open-url",
    "opengl",
    "printing",
    "remote-logging",
    "start-new-commands",
    "system-tray",
    "tray",
    "webcam",
    "xsettings",
)
"""Options that would let the guest reach more than windows, and those that would tell it about this host."""

_NO_DECODERS = ("YAML", "BENCODER")
"""A server may send in any of these, whatever was agreed, unless they are off. The first can name Python objects."""


def build_command(look: Look, session: Session, guest_socket: str) -> list[str]:
    """Return the command line of the client that shows what comes from `guest_socket`, within the sandbox."""
    here = os.path.dirname(os.path.abspath(__file__))
    sockets = {**session.sockets, GUEST_SOCKET: guest_socket}
    sockets |= {f"{_LIBRARY}/crannog/display/{file}": os.path.join(here, file) for file in _CLIENT_FILES}
    client = ["/usr/bin/python3", "-s", f"{_LIBRARY}/crannog/display/{_CLIENT_FILES[0]}"]
    client += [look.name, look.colour, look.state]
    return sandboxed([*client, *_list_words()], sockets, _make_environment(session))


def _list_words() -> list[str]:
    words = ["attach", f"socket://{GUEST_SOCKET}", *(f"--{option}=no" for option in _OFF)]
    words += ["--speaker=disabled", "--microphone=disabled", "--dbus-proxy=no", "--desktop-scaling=off"]
    words += ["--border=auto,0:off", f"--pings={PING_SECONDS}", "--window-close=forward"]
    # Few decoders: each of them reads what a guest made up.
    words += ["--encodings=rgb,png", "--compressors=zlib", "--packet-encoders=rencode", "--video-decoders=none"]
    # Without a layout the guest gets this host's: what is typed is what arrives, whatever the VM's settings say.
    return [*words, "--session-name=crannog", "--title=@title@", "--keyboard-sync=yes"]


def _make_environment(session: Session) -> dict[str, str]:
    return {
        **session.environment,
        "PYTHONPATH": _LIBRARY,
        "PYTHONDONTWRITEBYTECODE": "1",
        "XPRA_PING_TIMEOUT": str(SILENCE_SECONDS),
        "XPRA_SIGNAL_WATCHER": "0",
        **{f"XPRA_USE_{decoder}": "0" for decoder in _NO_DECODERS},
        "XPRA_SYSTEM_CONF_DIRS": _NOWHERE,  # what is set here is all that is set
        "XPRA_USER_CONF_DIRS": _NOWHERE,
    }
