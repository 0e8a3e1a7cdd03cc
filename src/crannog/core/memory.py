"""Whether the host has room for one more VM: its free memory, less what VMs were promised and do not use yet.

The kernel's MemAvailable does not fall when a VM starts, but when its guest touches its memory, which may be hours
later: ten idle guests would be let in where there is room for three. So each VM holds a *claim*, from before its domain
is created until that has ended: all that its guest may ever touch, and what QEMU needs besides. The part of it that is
in the host's memory by now (the RSS of its QEMU) has been taken from MemAvailable already; the rest is still to come.
What a guest touches thus moves from one side to the other, and the sum stays right without anybody having to say when
a start is over.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from crannog.core.displays import has_screen
from crannog.core.domain import HostCapabilities
from crannog.core.specification import most_memory
from crannog.core.vms import LocalVM
from crannog.errors import MemoryRefusedError

HOST_MIB = 200
"""What stays free for the host: the kernel's own reserves, crannogd, an RPC process for each VM (about 20 MiB)."""
PROCESS_MIB = 60
"""QEMU itself, without guest: 38 to 50 MiB resident with QEMU 7.2 (q35, two processors), and its threads' stacks."""
SCREEN_MIB = 32
"""An emulated screen: 16 MiB of video memory (QEMU's vgamem_mb), and a copy of it for whoever looks."""
TRANSLATION_MIB = 128
"""Guest code that QEMU has translated, where it emulates: a booted Linux guest fills about that much of its buffer."""
PAGE_TABLE_SHARE = 512
"""Page tables: an entry of 8 bytes for each page of 4096 bytes (Intel SDM, volume 3, 4-level paging)."""
_NAMED = 5
"""Most VMs that a refusal names."""


@dataclass(frozen=True)
class Need:
    """What a VM needs of the host's memory, in MiB: for the guest, and for QEMU besides."""

    guest: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.guest + self.overhead


@dataclass(frozen=True)
class Claim:
    """What the VM `name` may use in all, and what of it is in the host's memory already, in MiB."""

    name: str
    total: int
    resident: int = 0

    @property
    def outstanding(self) -> int:
        """What the host still has to give. QEMU may use more than was thought; that is no gain."""
        return max(0, self.total - self.resident)


def need_of(vm: LocalVM, capabilities: HostCapabilities) -> Need:
    """Return what a VM needs by its settings.

    A guest that may grow is counted with all it may grow to: on QEMU it has that from the start, and gives it back, and
    takes it again, as it likes.
    """
    guest = most_memory(vm, capabilities)
    overhead = PROCESS_MIB + -(-guest // PAGE_TABLE_SHARE)
    overhead += SCREEN_MIB if has_screen(vm) else 0
    overhead += TRANSLATION_MIB if capabilities.accel == "tcg" else 0
    return Need(guest, overhead)


def count_free(available: int, claims: Iterable[Claim]) -> int:
    """Return what can be promised to one more VM, in MiB; `available` is the kernel's MemAvailable."""
    return max(0, count_headroom(available, claims))


def count_headroom(available: int, claims: Iterable[Claim]) -> int:
    """Return the same, negative when more was promised than there is by now."""
    return available - HOST_MIB - sum(claim.outstanding for claim in claims)


def would_fit(need: Need, available: int, claims: Mapping[str, Claim], spare: Collection[str]) -> bool:
    """Tell whether a VM would fit if those of the VMs with a claim, by UUID, had ended that are named in `spare`."""
    given_back = sum(claim.resident for uuid, claim in claims.items() if uuid in spare)
    kept = (claim for uuid, claim in claims.items() if uuid not in spare)
    return need.total <= count_headroom(available + given_back, kept)


def check_room(name: str, need: Need, available: int, claims: Iterable[Claim]) -> None:
    """Raise MemoryRefusedError, with all the numbers, when the VM `name` does not fit."""
    holders = sorted(claims, key=lambda claim: (-claim.total, claim.name))
    free = count_free(available, holders)
    if need.total <= free:
        return
    held = ", ".join(f"{claim.name} holds {claim.total} MiB" for claim in holders[:_NAMED])
    more = f" and {len(holders) - _NAMED} more hold {sum(claim.total for claim in holders[_NAMED:])} MiB"
    advice = "shut one down, or" if holders else "end other programs, or"
    raise MemoryRefusedError(
        f"{name} needs {need.guest} MiB and {need.overhead} MiB for QEMU, but {free} MiB are free: "
        f"{held or 'no VM holds any'}{more if len(holders) > _NAMED else ''}; "
        f"{advice} give {name} less with 'qvm-prefs {name} memory'"
    )
