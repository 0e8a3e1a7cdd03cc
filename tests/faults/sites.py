"""A home on one of the three libvirts, and all that can be seen of it from outside."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crannog.client.connection import Client
from crannog.config import Paths, find_cache
from crannog.errors import CrannogError, MemoryRefusedError
from crannog.guest import agent
from crannog.images.builder import build_template
from crannog.images.kernel import build_kernel
from crannog.images.recipe import find_recipe
from tests.vm.home import Home
from tests.vm.libvirtd import Libvirtd, SessionLibvirtd

VM, NEIGHBOUR, GIANT = "work", "other", "giant"
"""The VM that is harmed, one that must not notice, and one that fits into no host."""
SETTLE_SECONDS = 15
_MORE_THAN_ANY_HOST = "16000000"
_STATUS = re.compile(r"<domstatus state='(\w+)' reason='([^']*)' pid='(\d+)'")


@dataclass(frozen=True)
class Status:
    """What libvirt has written down about a domain, in its own words."""

    state: str
    reason: str
    pid: int


NO_STATUS = Status("", "", 0)


@dataclass
class Site:
    """One home on one libvirt. `files` are those that are there while its VMs are halted and its daemon runs."""

    uri: str
    home: Home
    libvirtd: Libvirtd | None
    files: set[str] = field(default_factory=set)

    @property
    def client(self) -> Client:
        """A client that never starts a daemon: it would be one of the wrong user."""
        return Client(Paths(self.home.path), may_start_daemon=False)

    def without_paths(self, text: str) -> str:
        """Return a text that is the same for each run: with words in place of the folders of this one."""
        text = text.replace(self.home.path, "HOME")
        return text.replace(self.libvirtd.folder, "LIBVIRTD") if self.libvirtd else text

    def daemon(self) -> int:
        """Return the process number of the daemon that runs."""
        with open(f"{self.home.path}/run/crannogd.lock") as file:
            return int(file.read())

    def status(self, vm: str = VM) -> Status:
        """Return what libvirt has written down last about a domain; NO_STATUS for one that is absent."""
        with contextlib.suppress(OSError), open(f"{self.home.status_folder}/{vm}.xml") as file:
            found = _STATUS.search(file.read(4096))
            return Status(found[1], found[2], int(found[3])) if found else NO_STATUS
        return NO_STATUS

    def state(self, vm: str = VM) -> str:
        """Return a VM's power state as the API tells it."""
        return self.client.text("admin.vm.List", vm).partition("state=")[2].split()[0]

    def domains(self) -> list[str]:
        """Return the names of all domains, those of strangers too: from libvirtd, or from the driver's own files."""
        if self.libvirtd is None:
            folder = self.home.status_folder
            return sorted(name.removesuffix(".xml") for name in os.listdir(folder) if name.endswith(".xml"))
        import libvirt

        with contextlib.closing(libvirt.open(self.libvirtd.uri.replace(":///", "+unix:///", 1))) as connection:
            return sorted(domain.name() for domain in connection.listAllDomains())

    def holders(self) -> list[str]:
        """Return who has memory of the host reserved, in the words of a refusal that names them all."""
        try:
            self.client.text("crannog.vm.Start", GIANT, "nowait")
        except MemoryRefusedError as error:
            return re.findall(r"(\S+) holds \d+ MiB", str(error))
        except CrannogError as error:
            return [f"cannot be asked for: {error}"]
        return ["a host without end"]

    def leftovers(self) -> list[str]:
        """Return what is left of VMs that should be halted, one entry a thing."""
        files = self.home.files()
        found = [f"process {' '.join(line.split()[:4])}" for line in self.home.processes()]
        found += [f"file {name}" for name in sorted(files - self.files)]
        found += [f"missing file {name}" for name in sorted(self.files - files)]
        found += [f"domain {name}" for name in self.domains()]
        return found or [f"memory of {name}" for name in self.holders()]

    def settled(self) -> list[str]:
        """Return what is left when nothing goes away any more, or after `SETTLE_SECONDS`."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (left := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.files = self.home.files()  # told once is enough
        return left


def wait_for(is_true: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Wait until something holds; return whether it did within so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


@contextlib.contextmanager
def open_site(uri: str) -> Iterator[Site]:
    """Give a new home with the VMs of the series, all halted, on the libvirt that a URI names; take it all away after.

    For all but the embedded driver that libvirt is a libvirtd started for this alone.
    """
    with contextlib.ExitStack() as stack:
        libvirtd = _start_libvirtd(uri)
        if libvirtd:
            stack.callback(libvirtd.close)
            libvirtd.start()
        home = Home(libvirtd=libvirtd)
        stack.callback(home.close)
        if isinstance(libvirtd, SessionLibvirtd):
            home.env["CRANNOG_CACHE"] = _copy_images(libvirtd)
        site = Site(uri, home, libvirtd)
        _furnish(site)
        yield site


def _start_libvirtd(uri: str) -> Libvirtd | None:
    kinds = {"qemu:///session": SessionLibvirtd, "qemu:///system": Libvirtd}
    return kinds[uri]() if uri in kinds else None


def _copy_images(libvirtd: SessionLibvirtd) -> str:
    """Return a cache of the images that belongs to the user: building them anew takes a minute."""
    recipe, cache = find_recipe("debian-12", ""), find_cache()
    build_template(recipe, "pv", cache, print, agent_path=str(agent.__file__), size=10 * 2**30)
    build_kernel(cache, print, recipe=recipe)
    copy = f"{libvirtd.folder}/cache/crannog"
    subprocess.run(["cp", "--archive", "--sparse=always", cache, copy], check=True, timeout=120)
    libvirtd.give(copy)
    return copy


def _furnish(site: Site) -> None:
    """Make the VMs, and start one once: what a first start makes and keeps is no leftover of a later one."""
    home = site.home
    home.ok("crannog", "template", "build", "debian-12")
    for vm in (VM, NEIGHBOUR, GIANT):
        home.ok("qvm-create", "--template", "debian-12", vm)
        home.ok("qvm-prefs", vm, "memory", _MORE_THAN_ANY_HOST if vm == GIANT else "256")
    for vm in (VM, NEIGHBOUR):
        home.ok("qvm-start", "--wait", vm)
        home.ok("qvm-shutdown", "--wait", vm)
    site.holders()
    site.files = home.files()
