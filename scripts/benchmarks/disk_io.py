"""What a guest's reads and writes cost on a layer, beside a plain file with the same data in the same guest.

The layer is the private volume of a copied VM, made and given to the guest by Crannog; the plain file is a drive of the
same start. Both disks hold the same random bytes. The guest reads and writes past its own caches (disk_io.c), and the
host's memory holds nothing of either before a turn: what a file has there is written to several times as fast as what
it has not, and a new layer never has anything.
"""

import os
import struct
import subprocess
import tempfile

from benchmarks.by_hand import backing_file
from benchmarks.harness import Row, call, own_home, summarize, tool

TARGET = 1 / 0.9
PART = 64 * 2**20
"""Bytes that one act has to itself, as in disk_io.c."""
LEAST_RUNS = 31
NAMES = ("sequential reads", "sequential writes", "random reads", "random writes", "sequential writes to holes")
"""What is done in parts where the plain file has data on the host, but for the last, where it has holes."""
LAYER, PLAIN = "/dev/vdb", "/dev/vde"
SWAP = bytes(1024) + struct.pack("<III", 1, PART // 4096, 0) + bytes(3050) + b"SWAPSPACE2"
"""How swap space begins (mkswap(8)): a disk that the guest takes for one that is in use, and leaves alone."""


def _build_program(folder: str) -> str:
    path = f"{folder}/disk_io"
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "disk_io.c")
    subprocess.run(["cc", "-O2", "-static", "-o", path, source], check=True)
    return path


def _make_data(path: str, turns: int) -> None:
    with open(path, "wb") as file:
        file.write(SWAP)
        for turn in range(turns):
            file.seek((turn * len(NAMES) + 1) * PART)
            file.writelines(os.urandom(PART) for _ in NAMES[:-1])
        file.truncate((turns * len(NAMES) + 1) * PART)


def _forget(*paths: str) -> None:
    """Have the host's memory hold nothing of some files."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _in_guest(command: str, given: str = os.devnull) -> str:
    with open(given, "rb") as file:
        words = [tool("qvm-run"), "--pass-io", "--user", "root", "copy", command]
        return subprocess.run(words, stdin=file, stdout=subprocess.PIPE, check=True).stdout.decode()


def _start(folder: str, turns: int) -> list[str]:
    """Start a VM with both disks; return the files that they are in."""
    data = f"{folder}/data"
    _make_data(data, turns)
    call("crannog", "template", "build", "debian-12")
    call("qvm-create", "--template", "debian-12", "original")
    call("qvm-volume", "import", "original:private", data)
    call("qvm-clone", "original", "copy")
    call("qvm-start", "--wait", "--drive", f"hd:{data}", "copy")
    layer = call("qvm-volume", "info", "copy:private", "path").strip()
    return [data, layer, os.path.join(os.path.dirname(layer), backing_file(layer))]


def measure(runs: int) -> list[Row]:
    """Return a row for each kind of access."""
    turns = max(runs, LEAST_RUNS) + 1  # the first one warms up
    found = []
    with own_home(), tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder:
        files = _start(folder, turns)
        _in_guest("cat > /run/disk_io && chmod 755 /run/disk_io", _build_program(folder))
        for turn in range(turns):
            _forget(*files)
            found.append([float(word) for word in _in_guest(f"/run/disk_io {turn} {LAYER} {PLAIN}").split()])
    rows = []
    for number, name in enumerate(NAMES):
        layer, plain = (summarize([turn[place + number] for turn in found[1:]]) for place in (0, len(NAMES)))
        rows.append(Row(f"{name} on a layer", layer, "on a plain file", plain, TARGET))
    return rows
