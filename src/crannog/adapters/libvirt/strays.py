"""QEMUs that libvirt knows nothing of (any more): left by a crash, or by a libvirt whose files were lost."""

import contextlib

from crannog.hostprocesses import UUID_OPTION, find_option, is_emulator, is_own, kill, list_processes, read_command

_NAME = b"guest="
"""How libvirt begins the value of QEMU's option -name."""


def end_strays(ours: frozenset[str], there: frozenset[str], folder: str) -> list[str]:
    """End every QEMU of this user whose VM is one of `ours`, or has files in `folder`, and has no domain `there`.

    VMs are named by their UUIDs. A QEMU that libvirt did not start is let be. Returns a sentence for each. Blocks.
    """
    ended = []
    for process in list_processes():
        words = read_command(process)
        uuid = find_option(words, UUID_OPTION).lower()
        is_libvirts = any(word.startswith(_NAME) for word in words)
        is_here = uuid in ours or any(f"{folder}/".encode() in word for word in words)
        if not uuid or uuid in there or not (is_here and is_libvirts) or not is_own(process):
            continue
        with contextlib.suppress(OSError):
            if kill(process, lambda found, uuid=uuid: is_emulator(found, uuid)):  # type: ignore[misc]
                ended.append(f"process {process}: a QEMU of {uuid}, of which libvirt knows nothing, was ended")
    return ended
