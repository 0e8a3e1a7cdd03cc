"""What this host has, asked of its kernel."""

import os

from crannog.core.runtime import HostFacts


def read_host_facts() -> HostFacts:
    """Return memory and processors of this host (sysconf(3), sched_getaffinity(2))."""
    return HostFacts(
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        processors=len(os.sched_getaffinity(0)),
    )
