"""The age of libvirt as libvirt sees it: that of its newest part which is loaded.

What libvirt finds out about QEMU is worth nothing to it when the age has changed. One part, for files as disks, is
loaded at a process's first start of a domain only. Where its file is newer than the others, if only by a second of the
installation, the first start would count as a change: each crannogd would look at QEMU twice, 0.6 s each time.
"""

import ctypes
import glob
import logging
import os

log = logging.getLogger(__name__)

_LATE_MODULES = "libvirt/storage-file/*.so"
"""Below the folder of the library."""


def count_late_modules() -> None:
    """Have libvirt, which must be loaded, count the parts that it will load later into its age from now on.

    That is a function which libvirt exports for its own parts (virUpdateSelfLastChanged in its util/virutil.c). Without
    it nothing but time is lost.
    """
    try:
        library = ctypes.CDLL("libvirt.so.0")
        update = library.virUpdateSelfLastChanged
    except (OSError, AttributeError) as error:
        log.info("libvirt's age cannot be settled: %s", error)
        return
    update.argtypes, update.restype = [ctypes.c_char_p], None
    for path in glob.glob(os.path.join(glob.escape(_library_folder()), _LATE_MODULES)):
        update(os.fsencode(path))


def _library_folder() -> str:
    """Return the folder of the libvirt that this process has loaded (proc(5), maps)."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").partition("/")[2]
            if os.path.basename(path).startswith("libvirt.so."):
                return os.path.dirname("/" + path)
    return "/nowhere"
