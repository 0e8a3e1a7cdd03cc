"""crannog services: the folder in which qrexec looks services up, filled with the Admin API (Admin API, section 1)."""

from __future__ import annotations

import os
import sys

import crannog
from crannog.cli.options import Command, Operand, Option
from crannog.cli.tool import run, say
from crannog.errors import StorageError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

FOLDER, SOCKET = "/etc/qubes-rpc", "/var/run/qubesd.sock"
PROGRAMS = {
    "admin.vm.Console": "crannog-rpc-console",
    "admin.vm.volume.Import": "crannog-rpc-import",
    "admin.vm.volume.ImportWithSize": "crannog-rpc-import",
}
"""Services that move data, which the daemon's socket does not."""

COMMAND = Command(
    "crannog services",
    "Offer the Admin API as qrexec services: for each method a link to the daemon's socket, or to the program that "
    "serves it. What is there and is not ours is left alone.",
    Operand("action", "list|install|remove", "what to do"),
    Option("--folder", metavar="FOLDER", default=FOLDER, help=f"where services are looked up (default: {FOLDER})"),
    Option("--socket", metavar="SOCKET", default=SOCKET, help=f"the daemon's public socket (default: {SOCKET})"),
    examples="  crannog services list\n  crannog services install",
)


def read_methods() -> list[str]:
    """Return the names of the methods that policy knows."""
    path = os.path.join(os.path.dirname(crannog.__file__), "data/policy.d/90-admin-default.policy")
    with open(path, encoding="ascii") as file:
        return [line.split()[1] for line in file if line.startswith("!include-service ")]


def plan_links(socket: str) -> dict[str, str]:
    """Return what each service's name shall be a link to."""
    programs = os.path.dirname(os.path.abspath(sys.argv[0]))
    targets = {name: os.path.join(programs, program) for name, program in PROGRAMS.items()}
    return {name: targets.get(name, socket) for name in read_methods()}


def _act(options: Values) -> None:
    links = plan_links(options.socket)
    if options.action == "list":
        for name, target in links.items():
            say(f"{options.folder}/{name} -> {target}")
    elif options.action in ("install", "remove"):
        change = _install if options.action == "install" else _remove
        try:
            count = sum(change(os.path.join(options.folder, name), target) for name, target in links.items())
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be changed: {error.strerror}; are you root?") from error
        say(f"{options.action}: {count} of {len(links)} services changed in {options.folder}")
    else:
        raise UsageError(f"'{options.action}' is none of list, install, remove")


def _install(path: str, target: str) -> bool:
    """Make a link; tell whether anything changed."""
    if os.path.islink(path) and os.readlink(path) == target:
        return False
    if os.path.lexists(path) and not _is_ours(path):
        say(f"{path} is there already and not ours: left alone")
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.crannog-new"
    os.symlink(target, temporary)
    os.replace(temporary, path)
    return True


def _remove(path: str, target: str) -> bool:
    """Delete a link that is ours; tell whether it was there."""
    del target
    if not _is_ours(path):
        return False
    os.unlink(path)
    return True


def _is_ours(path: str) -> bool:
    if not os.path.islink(path):
        return False
    target = os.readlink(path)
    return target.endswith(".sock") or os.path.basename(target) in PROGRAMS.values()


def main(arguments: list[str]) -> int:
    """Run crannog services."""
    return run(COMMAND, _act, arguments)
