"""Disposables that are restored from a memory image, on real guests: each one of its own, and what goes wrong."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.disposables import (
    DVM,
    disposable_home,
    disposables,
    domains,
    has_program,
    image_of,
    none_is_left,
    pass_time,
    put_program,
    ready,
    refill_later,
    want,
)
from tests.vm.home import Home, wait_until
from tests.vm.test_disposables import IDENTITY

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

IMAGE_SECONDS = 120
MOST_MEMORY = 200 * 2**20
"""Bytes that a restored guest of 400 MiB may have of its own, as long as it has done next to nothing."""


@pytest.fixture(scope="module")
def theirs(shared_home: Home) -> str:
    """Give the template an SSH host key; return that, and its machine-id."""
    home = shared_home
    home.ok("qvm-start", "--wait", "debian-12")
    put_program(home, "debian-12", has_program("ssh-keygen"))
    make = (
        "mkdir -p /etc/ssh && cd /etc/ssh && rm -f ssh_host_* && ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key"
    )
    home.ok("qvm-run", "--user", "root", "debian-12", make)
    shown = home.ok("qvm-run", "--user", "root", "debian-12", "cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id")
    home.ok("qvm-shutdown", "--wait", "debian-12")
    return shown


@pytest.fixture(scope="module")
def home(shared_home: Home, theirs: str) -> Iterator[Home]:
    """Return a home with `dvm`, whose disposables may be restored."""
    assert theirs
    with disposable_home(shared_home, restores=True) as home:
        refill_later(home, never=True)
        yield home
        refill_later(home, never=False)


def ensure_image(home: Home) -> str:
    """Return the folder of the image, which is made if there is none."""
    if not image_of(home):
        want(home, 1)
        wait_until(lambda: bool(image_of(home)) and not half_made(home), "there is an image", IMAGE_SECONDS)
        want(home, 0)
    return image_of(home)


def half_made(home: Home) -> list[str]:
    return glob.glob(f"{home.path}/memory-images/*.*")


def log(home: Home) -> str:
    with open(f"{home.path}/log/crannogd.log") as file:
        return file.read()


def restored(home: Home) -> list[str]:
    """Return the names of all that were ever restored, in that order; a name may come again, as chance gives them."""
    return re.findall(r"runner: (disp\d+): identity is its own", log(home))


def use(home: Home, script: str = "") -> str:
    """Run a Python script in a disposable as root; fail when that was started cold."""
    before = len(restored(home))
    said = home.ok("qvm-run", "--user", "root", "--dispvm", "python3 -", stdin=script.encode())
    none_is_left(home)
    assert len(restored(home)) == before + 1, log(home)[-3000:]
    return said


def contents(home: Home) -> dict[str, tuple[int, int]]:
    """Return size and time of what templates hold, and of the image."""
    paths = glob.glob(f"{home.path}/pools/vm-pool/d[ev]*/*") + glob.glob(f"{home.path}/memory-images/*/*")
    return {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths if not path.endswith(".seal")}


def test_restored_ones_share_nothing(home: Home, theirs: str) -> None:
    """Two at once, one after them, and their template; which stays as it is, as does what they are restored from."""
    ensure_image(home)
    before, known = contents(home), len(restored(home))
    command = ("qvm-run", "--user", "root", "--dispvm", "python3 -")
    long = f"import time\ntime.sleep(2)\n{IDENTITY}".encode()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: home.ok(*command, stdin=long), range(2)))
    said.append(home.ok(*command, stdin=IDENTITY.encode()))
    assert len(restored(home)) == known + 3
    assert contents(home) == before
    found = [json.loads(text) for text in said]
    for key in found[0]:
        values = [str(each[key]) for each in found]
        assert len(set(values)) == 3, (key, values)
        assert not [value for value in values if value.strip("[]'") in theirs], key
    assert all(len(each["ssh"]) == 1 for each in found)
    assert all(each["uuid"].replace("-", "").lower() == each["machine-id"] for each in found)
    none_is_left(home)


def test_it_has_the_time_of_now_and_disks_of_its_own(home: Home) -> None:
    ensure_image(home)
    before = contents(home)
    write = (
        "import time\nprint(time.time())\nfor name in ('/root/mine', '/home/user/mine'):\n open(name, 'w').write('x')"
    )
    began = time.time()
    moment = float(use(home, write))
    assert began - 2 < moment < time.time() + 2
    look = "import os\nprint([p for p in ('/root/mine', '/home/user/mine') if os.path.exists(p)])"
    assert use(home, look).strip() == "[]"
    assert contents(home) == before


def test_a_pool_is_filled_from_it(home: Home) -> None:
    ensure_image(home)
    known = len(restored(home))
    want(home, 2)
    names = ready(home)
    assert set(names) == set(restored(home)[known:])
    for name in names:
        with open(f"/proc/{home.qemu(name)}/smaps_rollup") as file:
            facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.MULTILINE))
        assert int(facts["Pss"]) << 10 < MOST_MEMORY, facts
    seen = set()
    for _ in names:
        shown = home.ok("qvm-run", "--dispvm", "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname").split()
        assert shown[2] in names
        seen |= set(shown[:2])
    assert len(seen) == 4
    none_is_left(home)
    want(home, 0)


@pytest.mark.slow
def test_its_reboot_is_an_ordinary_one(home: Home) -> None:
    """Its memory is its own by then, and it boots from its own disks, by its own command line."""
    ensure_image(home)
    name = _start(home)
    look = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname"
    found = before = home.ok("qvm-run", "--user", "root", name, look).split()
    home.run("qvm-run", "--user", "root", name, "(sleep 0.3; reboot) >/dev/null 2>&1 &")

    def is_another_boot() -> bool:
        nonlocal found
        found = home.run("qvm-run", "--user", "root", name, look).stdout.decode().split()
        return len(found) == len(before) and found[1] != before[1]

    wait_until(is_another_boot, "it has booted", 120)
    assert found == [before[0], found[1], name]
    home.ok("qvm-kill", name)
    none_is_left(home)


def _start(home: Home) -> str:
    script = "from crannog.client.connection import Client; print(Client().text('admin.vm.CreateDisposable', 'dvm'))"
    made = subprocess.run([sys.executable, "-c", script], env=home.env, stdout=subprocess.PIPE, check=True, timeout=60)
    name = made.stdout.decode().strip()
    before = restored(home)
    home.ok("qvm-start", "--wait", name)
    assert restored(home) == [*before, name]
    return name


def test_a_damaged_image_is_a_cold_start(home: Home) -> None:
    path = f"{ensure_image(home)}/state"
    os.truncate(path, os.stat(path).st_size // 2)
    known = restored(home)
    assert home.ok("qvm-run", "--dispvm", "echo here") == "here\n"
    none_is_left(home)
    assert restored(home) == known
    assert "is damaged: state is not what was saved" in log(home)
    assert not image_of(home)


def test_a_daemon_that_is_killed_while_it_saves_leaves_nothing(home: Home) -> None:
    """What was finished in the last moment is as good as any."""
    folder = ensure_image(home)
    home.ok("qvm-features", DVM, "restore-dispvm", "0")
    wait_until(lambda: not os.path.exists(folder), "the image is dropped")
    home.ok("qvm-features", "--unset", DVM, "restore-dispvm")
    home.ok("qvm-features", DVM, "preload-dispvm-max", "1")
    wait_until(lambda: bool(glob.glob(f"{folder}*/state")), "it is being saved", IMAGE_SECONDS)
    home.kill_daemon()
    home.ok("qvm-features", DVM, "preload-dispvm-max", "0")
    wait_until(lambda: not disposables(home), "nobody's are gone", 60)
    wait_until(lambda: not [name for name in domains(home) if name.startswith("disp")], "no domain is left", 60)
    wait_until(lambda: half_made(home) == [], "nothing is half-made")
    ensure_image(home)
    use(home)


@pytest.mark.parametrize("seconds", [0.2, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_daemon_that_is_killed_while_it_restores_leaves_nothing(home: Home, seconds: float) -> None:
    folder = ensure_image(home)
    with home.popen("qvm-run", "--dispvm", "sleep 100", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tool:
        pass_time(seconds)
        home.kill_daemon()
        tool.send_signal(signal.SIGKILL)
    wait_until(lambda: set(disposables(home).values()) <= {"Running"}, "what was half done is gone", 60)
    for name in disposables(home):  # its user had that, whose end is told to nobody here
        assert name in restored(home)
        home.ok("qvm-kill", name)
    none_is_left(home)
    assert not [name for name in domains(home) if name.startswith("disp")]
    assert image_of(home) == folder
    use(home)


def test_a_change_of_the_template_drops_it(home: Home) -> None:
    folder = ensure_image(home)
    assert "disp" not in home.run("crannog", "storage", "check").stdout.decode()
    assert "memory" not in home.run("crannog", "storage", "gc").stdout.decode()
    assert image_of(home) == folder
    home.ok("qvm-start", "--wait", "debian-12")
    home.ok("qvm-run", "--user", "root", "debian-12", "echo new >/etc/changed")
    home.ok("qvm-shutdown", "--wait", "debian-12")
    assert home.ok("qvm-run", "--dispvm", "cat /etc/changed").strip() == "new"
    none_is_left(home)
    assert not os.path.exists(folder)
