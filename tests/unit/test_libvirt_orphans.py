"""Burying detached emulators, in a process of its own: being a subreaper concerns the whole process."""

import shutil
import subprocess
import sys
from pathlib import Path

NAME = "crannog-emulator"

SCRIPT = """
import asyncio, os, subprocess, sys
from crannog.adapters.libvirt import orphans

async def is_buried(pid):
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return True
        await asyncio.sleep(0.01)
    return False

async def main(emulator):
    orphans.adopt_emulators(os.path.basename(emulator))
    detach = f"setsid {emulator} 0.1 > /dev/null & echo $!"
    orphan = int(subprocess.run(["sh", "-c", detach], capture_output=True, check=True).stdout)
    assert os.path.exists(f"/proc/{orphan}")
    own = subprocess.Popen([emulator, "no number"], stderr=subprocess.DEVNULL)
    print("orphan buried", await is_buried(orphan))
    print("own status", own.wait(60))
    orphans.release()

asyncio.run(main(sys.argv[1]))
"""


def test_detached_emulators_are_buried_and_own_children_left_alone(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep
    emulator = shutil.copy(sleep, tmp_path / NAME)
    arguments = [sys.executable, "-c", SCRIPT, str(emulator)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert ran.stdout == "orphan buried True\nown status 1\n", ran.stderr
