"""Driver lvm-thin when its daemon is killed between any two steps, and whatever is done in whatever order."""

from tests.dm.kills import ShortKills, ShortWalks
from tests.dm.lvm_bench import InThinPool


class TestKills(InThinPool, ShortKills):
    """Old or new content, and nothing half-made."""


class TestWalks(InThinPool, ShortWalks):
    """Random walks."""
