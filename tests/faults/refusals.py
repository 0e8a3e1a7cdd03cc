"""Starts that must be refused by one sentence, with nothing left: no hvm on the host, a stranger with the VM's name."""

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator

from tests.faults.results import Report, Result
from tests.faults.sites import VM, Site
from tests.faults.watching import answer_of, begun, spread

HVM = "island"
OTHER_EMULATOR = "qemu-system-i386"
"""A QEMU that has no machine with the guest type hvm of x86_64."""
_STRANGER = """<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
</domain>"""


def refuse_starts(site: Site, points: int, report: Report) -> list[Result]:
    """Try so many of the starts that must be refused; a stranger can be in a libvirtd only."""
    cases: dict[str, Callable[[Site], Result]] = {"a host without hvm": _without_hvm}
    if site.libvirtd:
        cases["a stranger has the VM's name"] = _with_stranger
    results = []
    for case in spread(list(cases.values()), points):
        result = case(site)
        results.append(result)
        report(f"{result.point}: {result.answer} {' '.join(result.wrong)}")
    return results


def _without_hvm(site: Site) -> Result:
    home = site.home
    home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", HVM)
    before, site.files = site.files, home.files()
    try:
        with _other_emulator(site):
            return _refused(site, HVM, "a host without hvm", "is an HVM, and this host can run none")
    finally:
        home.ok("qvm-remove", "--force", HVM)
        site.files = before


@contextlib.contextmanager
def _other_emulator(site: Site) -> Iterator[None]:
    """Have the home's daemon use an emulator that cannot run our HVMs."""
    path, home = f"{site.home.path}/crannog.toml", site.home
    emulator = shutil.which(OTHER_EMULATOR)
    assert emulator, f"{OTHER_EMULATOR} is not installed"
    with open(path, "a+") as file:
        file.seek(0)
        text = file.read()
        file.write(f'emulator = "{emulator}"\n')
    home.ok("crannog", "daemon", "stop")
    home.ok("qvm-ls")
    try:
        yield
    finally:
        with open(path, "w") as file:
            file.write(text)
        home.ok("crannog", "daemon", "stop")
        home.ok("qvm-ls")


def _with_stranger(site: Site) -> Result:
    import libvirt

    assert site.libvirtd
    identity = str(uuid.uuid4())
    with contextlib.closing(libvirt.open(site.libvirtd.uri.replace(":///", "+unix:///", 1))) as connection:
        stranger = connection.createXML(_STRANGER.format(name=VM, uuid=identity), 0)
        number, files = stranger.ID(), site.files
        site.files = site.home.files()
        try:
            result = _refused(site, VM, "a stranger has the VM's name", VM, may_stay=[f"domain {VM}"])
            if not stranger.isActive() or stranger.ID() != number:
                result = Result(result.point, result.answer, result.state, (*result.wrong, "the stranger ended"), 0)
        finally:
            stranger.destroy()
            site.files = files
    left = site.settled()
    return Result(result.point, result.answer, result.state, (*result.wrong, *left), result.seconds)


def _refused(site: Site, vm: str, point: str, reason: str, may_stay: list[str] | None = None) -> Result:
    """Start a VM, which must be refused with a reason; return what came of it."""
    wrong: list[str] = []
    began = time.monotonic()
    with begun(site, "qvm-start", "--no-wait", vm) as tool:
        answer = answer_of(site, tool, wrong)
    seconds = time.monotonic() - began
    if reason not in answer or answer == "done":
        wrong.append(f"it was not refused with '{reason}'")
    wrong += [thing for thing in site.leftovers() if thing not in (may_stay or [])]
    return Result(point, answer, site.state(vm), tuple(wrong), round(seconds, 3))
