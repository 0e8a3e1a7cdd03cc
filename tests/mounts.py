"""Small file systems, for disks that run full. Mounting takes root: an ordinary user's tests use sudo."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of `size` (as mount(8) takes it) at `folder`, which is made; unmount it afterwards."""
    folder.mkdir(exist_ok=True)
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={size},mode=700,uid={os.geteuid()}"
    subprocess.run(
        [*prefix, "mount", "-t", "tmpfs", "-o", options, "crannog-test", str(folder)], check=True, timeout=10
    )
    try:
        yield folder
    finally:
        subprocess.run([*prefix, "umount", "-l", str(folder)], check=True, timeout=10)
