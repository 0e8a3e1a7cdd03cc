"""Pool linux-kernel: kernels that the host hands to pv and pvh guests, a folder each."""

import json
import os
import re
import shutil

from crannog.adapters.storage.process import run_tool
from crannog.core.kernels import KernelFiles
from crannog.errors import StorageError, ValueRefusedError

KERNEL_FILES = ("vmlinux", "vmlinuz")
INITRAMFS = "initramfs"
MODULES = "modules.img"
FACTS = "kernel.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+~-]{0,99}")


class KernelPool:
    """The kernels in one folder. A kernel's name is its folder's, usually its release (uname -r)."""

    driver = "linux-kernel"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def files(self, name: str) -> KernelFiles:
        """Return a kernel's files; raises StorageError when the kernel or its initramfs is missing."""
        folder = os.path.join(self.folder, check_kernel_name(name))
        return self._files_in(folder, name)

    @staticmethod
    def _files_in(folder: str, name: str) -> KernelFiles:
        kernels = [path for path in (os.path.join(folder, file) for file in KERNEL_FILES) if os.path.exists(path)]
        initramfs = os.path.join(folder, INITRAMFS)
        if not kernels or not os.path.exists(initramfs):
            missing = folder if not kernels else initramfs
            raise StorageError(
                f"kernel '{name}' is missing: {missing} has no {'kernel' if not kernels else 'content'}; "
                f"'crannog template build debian-12' adds a kernel, 'qvm-prefs VM kernel NAME' chooses another"
            )
        modules = os.path.join(folder, MODULES)
        has_modules = os.path.isfile(modules) and not os.path.islink(modules)
        return KernelFiles(kernels[0], initramfs, modules if has_modules else "", has_layers=_has_layers(folder))

    async def add(self, name: str, source: str) -> None:
        """Copy the kernel in folder `source` to the pool, whole or not at all; one that is there is replaced."""
        check_kernel_name(name)
        half_made = os.path.join(self.folder, f".new-{name}")
        target = os.path.join(self.folder, name)
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            shutil.rmtree(half_made, ignore_errors=True)
            await run_tool(f"kernel {name} cannot be added", "cp", "-r", "--reflink=auto", "--", source, half_made)
            self._files_in(half_made, name)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(half_made, target)
        except OSError as error:
            raise StorageError(f"kernel {name} cannot be added: {error.strerror}") from error
        finally:
            shutil.rmtree(half_made, ignore_errors=True)

    async def remove(self, name: str) -> None:
        """Delete a kernel. It is renamed first, so that a crash never leaves half of one under its name."""
        target, doomed = (os.path.join(self.folder, check_kernel_name(name)), os.path.join(self.folder, f".old-{name}"))
        try:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(target, doomed)
            shutil.rmtree(doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"kernel {name} cannot be deleted: {error.strerror}") from error


def _has_layers(folder: str) -> bool:
    """Tell whether a kernel says so of its initramfs; one that was made elsewhere says nothing."""
    try:
        with open(os.path.join(folder, FACTS), encoding="utf-8") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("layers") is True


def check_kernel_name(name: str) -> str:
    """Return `name` if it can be a kernel's: a folder's name that starts with a letter or digit.

    Raises ValueRefusedError, so that no name leads out of the pool's folder.
    """
    if not _NAME.fullmatch(name):
        raise ValueRefusedError(f"'{name[:80]}' cannot be the name of a kernel; use letters, digits and . _ + ~ -")
    return name
