"""Pools as values: where volumes live, and by which driver (Admin API, section 6)."""

from dataclasses import dataclass

DEFAULT_POOL = "vm-pool"
KERNEL_POOL = "linux-kernel"


@dataclass(frozen=True)
class PoolConfig:
    """One pool. `options` are the driver's, as pairs in their order."""

    name: str
    driver: str
    options: tuple[tuple[str, str], ...] = ()


BUILT_IN_POOLS = (PoolConfig(DEFAULT_POOL, "qcow2"), PoolConfig(KERNEL_POOL, "linux-kernel"))
"""The pools that every home has."""
