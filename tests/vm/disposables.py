"""A home with a disposable template, and what tests of disposables look at."""

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.vm.home import Home, wait_until

DVM = "dvm"
FILL_SECONDS = 120
"""A guest boots in 4 s on a quiet machine, and in 20 s on a busy one."""


@contextmanager
def disposable_home(home: Home, *, restores: bool = False, template: str = "debian-12") -> Iterator[Home]:
    """Give a home the AppVM `dvm` of a template, from which disposables start by default.

    Unless `restores`, none is restored from memory: a VM that comes and goes to be saved would be among those that are
    counted, and all would take less time than what is tested has.
    """
    home.ok("qvm-create", "--template", template, DVM)
    if not restores:
        home.ok("qvm-features", DVM, "restore-dispvm", "")
    home.ok("qvm-prefs", DVM, "template_for_dispvms", "True")
    home.ok("qubes-prefs", "default_dispvm", DVM)
    yield home
    home.ok("qubes-prefs", "default_dispvm", "")
    want(home, 0)
    home.ok("qvm-remove", "--force", DVM)


def want(home: Home, count: int) -> None:
    """Have so many disposables ready, and return when they are."""
    home.ok("qvm-features", DVM, "preload-dispvm-max", str(count))
    wait_until(lambda: len(ready(home)) == count, f"{count} are ready", FILL_SECONDS)
    if not count:
        wait_until(lambda: not disposables(home), "no disposable is left", FILL_SECONDS)


def refill_later(home: Home, *, never: bool) -> None:
    """Have what is claimed not be replaced, or be at once."""
    home.ok("qvm-features", "dom0", "preload-dispvm-delay", "-1" if never else "0")


def disposables(home: Home) -> dict[str, str]:
    """Return the states of all disposables, by name."""
    lines = home.ok("qvm-ls", "--raw-data", "--fields", "name,class,state").splitlines()
    rows = [line.split("|") for line in lines]
    return {name: state for name, klass, state in rows if klass == "DispVM"}


def ready(home: Home) -> list[str]:
    lines = home.ok("qvm-ls", "--raw-data", "--fields", "name,is_preload,state").splitlines()
    rows = [line.split("|") for line in lines]
    return sorted(name for name, is_preload, state in rows if (is_preload, state) == ("True", "Paused"))


def find_images(home: str) -> list[str]:
    """Return the folders of the whole memory images in a home."""
    return [os.path.dirname(path) for path in glob.glob(f"{home}/memory-images/*/manifest.json")]


def image_of(home: Home) -> str:
    """Return the folder of the memory image; empty when there is none."""
    return next(iter(find_images(home.path)), "")


def none_is_left(home: Home, but: int = 0) -> None:
    """Return when no disposable is there but for those that are ready."""
    wait_until(lambda: len(disposables(home)) == but, f"{but} disposables are left: {disposables(home)}", 60)


def threads_and_files(pid: int) -> tuple[int, int, int]:
    """Return how many threads and open files a process has, and its memory in KiB."""
    with open(f"/proc/{pid}/status") as file:
        facts = dict(line.split(":", 1) for line in file)
    return int(facts["Threads"]), len(os.listdir(f"/proc/{pid}/fd")), int(facts["VmRSS"].split()[0])


def domains(home: Home) -> set[str]:
    """Return what libvirt has written of domains."""
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir(home.status_folder) if name.endswith((".xml", ".pid"))}
    return set()


def put_program(home: Home, vm: str, path: str) -> None:
    """Copy a program of this host, of the same distribution as the guest, into a running VM."""
    with open(path, "rb") as file:
        home.ok("qvm-run", "--user", "root", vm, f"cat >{path} && chmod 755 {path}", stdin=file.read())


def has_program(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is needed: scripts/setup test installs it"
    return path


def pass_time(seconds: float) -> None:
    """Let time go by: what is tested is what a clock shows after that."""
    time.sleep(seconds)
