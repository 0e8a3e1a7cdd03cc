"""The main job with real guests: templates, both modes, what is kept and what is not (B1, B3, B12, B13)."""

import glob
import re
import zlib

import pytest

from crannog.images.digest import digest_sparse
from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

MEMTEST = "/usr/lib/memtest86+/memtest86+x64.iso"


def digests(home: Home) -> dict[str, str]:
    found = {}
    for path in glob.glob(f"{home.path}/pools/vm-pool/debian-12*/root.*"):
        found[path] = digest_sparse(path)
    return found


@pytest.mark.parametrize("template", ["debian-12", "debian-12-hvm"])
def test_b1_root_is_fresh_and_private_is_kept(shared_home: Home, template: str) -> None:
    home, vm = shared_home, "vm-" + template
    before = digests(home)
    home.ok("qvm-create", "--template", template, vm)
    assert home.state(vm) == "Halted"
    home.ok("qvm-start", "--wait", vm)
    assert home.state(vm) == "Running"
    assert home.ok("qvm-run", vm, "uname -n") == f"{vm}\n"
    home.ok("qvm-run", "--user", "root", vm, "echo gone > /etc/on-root; echo kept > /rw/on-private; sync")
    home.ok("qvm-shutdown", "--wait", vm)
    assert home.state(vm) == "Halted"
    home.ok("qvm-start", "--wait", vm)
    assert home.ok("qvm-run", vm, "cat /rw/on-private") == "kept\n"
    assert home.run("qvm-run", vm, "cat /etc/on-root").returncode == 1
    home.ok("qvm-kill", vm)
    home.ok("qvm-remove", "--force", vm)
    assert digests(home) == before
    assert not glob.glob(f"{home.path}/pools/vm-pool/{vm}-*")


def test_b12_a_template_runs_together_with_its_vms(shared_home: Home, running: str) -> None:
    home = shared_home
    home.ok("qvm-start", "--wait", "debian-12")
    home.ok("qvm-run", "--user", "root", "debian-12", "echo new > /etc/in-template; sync")
    home.ok("qvm-shutdown", "--wait", "debian-12")
    assert home.run("qvm-run", running, "cat /etc/in-template").returncode == 1
    home.ok("qvm-create", "--template", "debian-12", "later")
    home.ok("qvm-start", "--wait", "later")
    assert home.ok("qvm-run", "later", "cat /etc/in-template") == "new\n"
    home.ok("qvm-kill", "later")
    home.ok("qvm-remove", "--force", "later")


def test_b12_a_standalone_hvm_serves_as_template_but_never_at_the_same_time(shared_home: Home) -> None:
    home = shared_home
    image = glob.glob(f"{home.path}/pools/vm-pool/debian-12-hvm-*/root.*.img")[-1]
    home.ok("qvm-create", "-C", "StandaloneVM", "--property", "virt_mode=hvm", "--root-copy-from", image, "alone")
    home.ok("qvm-create", "--template", "alone", "child")
    home.ok("qvm-start", "--no-wait", "child")
    assert "while child runs" in home.fails(6, "qvm-start", "alone")
    home.ok("qvm-kill", "child")
    home.ok("qvm-start", "--no-wait", "alone")
    assert "while alone runs" in home.fails(6, "qvm-start", "child")
    home.ok("qvm-kill", "alone")
    assert "in use by child" in home.fails(4, "qvm-remove", "--force", "alone")
    home.ok("qvm-remove", "--force", "child", "alone")


def test_b13_a_guest_announces_itself(shared_home: Home, running: str) -> None:
    assert shared_home.ok("qvm-prefs", running, "default_user") == "user\n"
    assert shared_home.ok("qvm-run", running, "id -un") == "user\n"


def test_a_foreign_image_boots_as_cdrom(shared_home: Home) -> None:
    home = shared_home
    home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "memtest")
    home.ok("qvm-start", "--cdrom", MEMTEST, "memtest")
    picture = f"{home.path}/memtest.png"

    def is_memtest_blue() -> bool:
        home.ok("crannog", "screenshot", "memtest", picture)
        return blue_share(picture) > 0.5

    wait_until(is_memtest_blue, "memtest86+ fills the screen with its blue", timeout=90)
    home.ok("qvm-kill", "memtest")
    home.ok("qvm-remove", "--force", "memtest")


def blue_share(path: str) -> float:
    """Return the share of blue pixels in a PNG of 8-bit RGB (PNG specification, sections 5 and 9)."""
    with open(path, "rb") as file:
        data = file.read()
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    chunks = re.finditer(rb"IDAT", data)
    body = b"".join(data[c.end() : c.end() + int.from_bytes(data[c.start() - 4 : c.start()], "big")] for c in chunks)
    lines, previous, blue = zlib.decompress(body), bytes(3 * width), 0
    for y in range(height):
        start = y * (3 * width + 1)
        previous = unfilter(lines[start], lines[start + 1 : start + 1 + 3 * width], previous)
        blue += sum(previous[x : x + 2] == b"\0\0" and previous[x + 2] > 128 for x in range(0, 3 * width, 3))
    return blue / (width * height)


def unfilter(kind: int, line: bytes, above: bytes) -> bytes:
    out = bytearray(line)
    for i in range(len(out)):
        left, up, corner = (out[i - 3], above[i], above[i - 3]) if i >= 3 else (0, above[i], 0)
        estimate = left + up - corner
        nearest = min((left, up, corner), key=lambda value: abs(estimate - value))
        out[i] = (out[i] + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
    return bytes(out)


def test_stages_and_plan_are_shown(shared_home: Home, work: str) -> None:
    plan = shared_home.ok("qvm-start", "--dry-run", work)
    assert shared_home.state(work) == "Halted"
    verbs = ["prepare", "prepare", "prepare", "reserve", "start", "open", "create", "resume", "wait"]
    assert [line.split()[0] for line in plan.splitlines()] == verbs
    stages = shared_home.ok("qvm-start", "--verbose", work)
    assert all(stage in stages for stage in ("volume ready", "domain created", "running", "agent answers", "in all"))


def test_b3_no_domain_and_no_process_outside_a_run(shared_home: Home, work: str) -> None:
    home = shared_home
    before = home.files()
    home.ok("qvm-start", "--wait", work)
    home.ok("qvm-shutdown", "--wait", work)
    assert home.files() == before
    assert not [line for line in home.processes() if f"guest={work}" in line or f"--name {work} " in line]
