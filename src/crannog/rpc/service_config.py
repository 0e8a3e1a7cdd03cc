"""How a service of this host is served: its configuration file (qrexec protocol, "Service lookup").

The guest agent has its own reader (crannog/guest/agent.py), as it stands alone.
"""

import os
from dataclasses import dataclass

from crannog.errors import RpcError

FOLDERS = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"
NAME_MAX, SIZE_MAX = 255, 4096
_FLAGS = {
    "wait-for-session": {"true": True, "false": False, "1": True, "0": False},
    "skip-service-descriptor": {"true": True, "false": False},
    "exit-on-client-eof": {"true": True, "false": False},
    "exit-on-service-eof": {"true": True, "false": False},
}
_FOR_SOCKETS = _FLAGS.keys() - {"wait-for-session"}


@dataclass(frozen=True)
class ServiceConfig:
    """What a file says. All but the first option are for services behind a socket."""

    wait_for_session: bool = False
    skip_service_descriptor: bool = False
    exit_on_client_eof: bool = False
    exit_on_service_eof: bool = False


def read_config(call: str) -> ServiceConfig:
    """Return the configuration of a call: that for its argument before the general one.

    Raises RpcError when there is one that cannot be used: it may forbid what is about to be done.
    """
    for name in (call, call.partition("+")[0]):
        for folder in os.environ.get("QUBES_RPC_CONFIG_PATH", FOLDERS).split(":"):
            if folder and len(name) <= NAME_MAX and (text := _read(f"{folder}/{name}")) is not None:
                return parse_config(text, f"{folder}/{name}")
    return ServiceConfig()


def _read(path: str) -> str | None:
    """Return what a file says, None when there is none; a link that leads nowhere is not "none"."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RpcError(f"it is not known whether there is a file {path}: {error.strerror}") from error
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_MAX + 1)
        text = data.decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise RpcError(f"the configuration {path} cannot be read: {error}") from error
    if len(data) > SIZE_MAX:
        raise RpcError(f"the configuration {path} is longer than {SIZE_MAX} bytes; keep to its options")
    return text


def parse_config(text: str, path: str) -> ServiceConfig:
    """Return what lines of `key = value` say; unknown keys are for other versions. Raises RpcError."""
    options: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        key, sign, value = (part.strip() for part in _strip_comment(line).partition("="))
        if not key and not sign:
            continue
        if not sign or key in options or not _is_possible(key, value):
            raise RpcError(f"the configuration {path} is wrong in line {number}; a line is an option, '=', and a value")
        options[key] = value
    if "force-user" in options and options.keys() & _FOR_SOCKETS:
        raise RpcError(f"the configuration {path} has force-user, which is for programs, with options for sockets")
    flags = {key.replace("-", "_"): _FLAGS[key][value] for key, value in options.items() if key in _FLAGS}
    return ServiceConfig(**flags)


def _is_possible(key: str, value: str) -> bool:
    """Tell whether an option can have a value. Whom `force-user` names does not matter here: we have one user."""
    if key == "force-user":
        return len(value) > 2 and value[0] == value[-1] == "'" and "'" not in value[1:-1]
    return value in _FLAGS.get(key, {value})


def _strip_comment(line: str) -> str:
    """Return a line without its comment; a `#` between quotes begins none."""
    parts = line.split("'")
    for number in range(0, len(parts), 2):
        if "#" in parts[number]:
            return "'".join([*parts[:number], parts[number].partition("#")[0]])
    return line
