"""What others have published of themselves. None of it was measured here, and none of it on this hardware."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One figure of others: what was timed, the figure, on what hardware, and where it stands."""

    what: str
    figure: str
    hardware: str
    source: str


_QUBES = "QubesOS/qubes-core-admin, pull request 715 (2025)"
_QUBES_FEDORA = "QubesOS/qubes-core-admin, pull request 708 (2025)"
_FIRECRACKER = "firecracker-microvm/firecracker, SPECIFICATION.md"
_METAL = "m5d.metal, m6g.metal, with KVM"
_UNTOLD = "real Xen on hardware that is not told"

PUBLISHED = (
    Published("Qubes OS: a call to a new disposable, Debian 12, each of 16", "6.9 s", _UNTOLD, _QUBES),
    Published("the same, with GUI", "7.9 s", _UNTOLD, _QUBES),
    Published("the same, calls at once", "3.1 s", _UNTOLD, _QUBES),
    Published("Qubes OS: a call to a new disposable, Fedora 42", "8.5 s", _UNTOLD, _QUBES_FEDORA),
    Published("the same, 2 of them preloaded", "4.8 s", _UNTOLD, _QUBES_FEDORA),
    Published(
        "Qubes OS: qvm-run of `echo` in a preloaded disposable, to its end (with clean-up)",
        "0.8 s (2.9 s)",
        _UNTOLD,
        "QubesOS/qubes-issues, issue 1512 (2025)",
    ),
    Published(
        "Firecracker: from the request to the guest's init, at most",
        "125 ms",
        _METAL,
        _FIRECRACKER,
    ),
    Published("Firecracker: memory beside the guest's, at most", "5 MiB", _METAL, _FIRECRACKER),
)
