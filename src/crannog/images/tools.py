"""Running the programs that build images: progress for a human, one sentence when one of them fails."""

import collections
import contextlib
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from crannog.errors import StorageError

Report = Callable[[str], None]

PACKAGES = {
    "grub-mkimage": "grub-common",
    "mke2fs": "e2fsprogs",
    "newuidmap": "uidmap",
    "sfdisk": "fdisk",
    "unshare": "util-linux",
}
"""Debian package of a program, where it is not called like the program."""

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_KEPT_LINES = 200

# The most telling line of a failure comes before what the tools say about each other's exit status.
_CAUSES = ("No space left on device", "Temporary failure resolving", "Could not connect", "Unable to connect")
_ECHOES = ("I: ", "W: ", "E: mmdebstrap failed to run", "E: run_chroot failed", "E: setup failed")


@contextlib.contextmanager
def stage(report: Report, text: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Report the start of a long stage, and its end with the seconds it took."""
    started = clock()
    report(f"{text} ...")
    yield
    report(f"{text}: done in {clock() - started:.1f} s")


def find_tool(name: str) -> str:
    """Return the path of the program `name`; an ordinary user's PATH may lack the sbin folders.

    Raises StorageError that names the package to install.
    """
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":" + _SBIN)
    if path is None:
        package = PACKAGES.get(name, name)
        raise StorageError(f"building images needs the program {name}: install the package {package}")
    return path


def run_tool(
    arguments: Sequence[str],
    purpose: str,
    *,
    on_line: Callable[[str], None] = lambda line: None,
    stdin: bytes | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a program to its end, handing each line that it prints to `on_line`.

    `purpose` begins the error: "<purpose> failed". Raises StorageError with the program's own last words. When this
    process is interrupted the program is told to stop, and waited for, so that it removes its temporary files.
    """
    command = [find_tool(arguments[0]), *arguments[1:]]
    lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
        # A group of its own: a failing mmdebstrap hangs up on its whole process group.
        process_group=0,
    ) as process:
        try:
            _feed(process.stdin, stdin)
            for line in _read_lines(process.stdout):
                lines.append(line)
                on_line(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status != 0:
        raise StorageError(f"{purpose} failed: {_explain(arguments[0], lines, status)}")


def _feed(pipe: IO[bytes] | None, content: bytes | None) -> None:
    if pipe is not None:
        # A program that ends without reading says why in its own words.
        with contextlib.suppress(BrokenPipeError), pipe:
            pipe.write(content or b"")


def _read_lines(pipe: IO[bytes] | None) -> Iterator[str]:
    for raw in pipe or ():
        line = raw.decode(errors="replace").strip()
        if line:
            yield line


def _explain(tool: str, lines: Sequence[str], status: int) -> str:
    for cause in _CAUSES:
        for line in lines:
            if cause in line:
                return f"{tool} says '{line}'"
    telling = [line for line in lines if not line.startswith(_ECHOES)] or list(lines)
    if telling:
        return f"{tool} says '{telling[-1]}'"
    return f"{tool} ended with status {status} and said nothing"


def owner_prefix() -> list[str]:
    """Return what to put before a command that must own files as root of the image.

    Nothing for root; else unshare(1) with a user namespace in which root is this user and the other ids are the
    user's subordinate ones (subuid(5)). Raises StorageError that says what the user lacks.
    """
    if os.geteuid() == 0:
        return []
    find_tool("newuidmap")
    if not _has_subordinate_ids():
        name = _login_name()
        raise StorageError(
            f"the user {name} has no subordinate ids, which building images without root needs: run 'usermod "
            f"--add-subuids 100000-165535 --add-subgids 100000-165535 {name}' as root, or build as root"
        )
    return ["unshare", "--map-root-user", "--map-auto", "--"]


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def _has_subordinate_ids() -> bool:
    wanted = {_login_name(), str(os.geteuid())}
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, encoding="utf-8") as file:
                if not any(line.split(":")[0] in wanted for line in file):
                    return False
        except FileNotFoundError:
            return False
    return True
