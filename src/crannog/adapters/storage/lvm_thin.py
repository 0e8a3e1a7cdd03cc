"""Driver lvm-thin: a layer is a thin snapshot, in an existing thin pool of an existing volume group. It needs root.

The thin pool can be shared with other pools, other homes, and whatever else has LVs there: none of those is touched.
"""

from crannog.adapters.storage.lvm_sessions import ThinSessions


class LvmThinPool(ThinSessions):
    """Thin LVs (see ports.storage.Pool)."""

    driver = "lvm-thin"
