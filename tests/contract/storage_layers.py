"""What the drivers keep to whose layers can stay from start to start (design.md, B2)."""

from dataclasses import replace

import pytest

from crannog.core.volumes import LayerState, Volume
from crannog.ports.storage import Pool
from tests.contract.benches import IN_PLACE, KEEPING, LAYER, Bench, Contract, holds, see, session, write
from tests.contract.storage_volatile import VOLATILE

KEPT = replace(LAYER, keeps_layer=True)
SOURCES = [KEEPING, replace(KEEPING, revisions_to_keep=0)]


class LayerContract(Contract):
    """Layers of VMs in debug mode."""

    @pytest.mark.parametrize("source", SOURCES, ids=["keeping", "in-place"])
    async def test_a_layer_stays_until_what_is_below_changes(self, bench: Bench, pool: Pool, source: Volume) -> None:
        await session(pool, source, "t")
        assert await pool.layer_state(KEPT) is LayerState.ABSENT
        await session(pool, KEPT, "a")
        assert await pool.layer_state(KEPT) is LayerState.CURRENT
        again = bench.open()
        assert await again.recover(frozenset((KEEPING.vid, IN_PLACE.vid, LAYER.vid))) == []
        assert await see(again, KEPT) == "a"
        assert await see(again, KEPT) == "a"
        await session(again, source, "u")
        assert await again.layer_state(KEPT) is LayerState.OUTDATED
        assert await see(again, KEPT) == "u"
        assert await again.layer_state(KEPT) is LayerState.CURRENT

    async def test_a_layer_goes_with_the_debug_mode(self, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        await session(pool, KEPT, "a")
        assert await see(pool, LAYER) == "t"
        assert await pool.layer_state(KEPT) is LayerState.ABSENT
        assert await see(pool, KEPT) == "t"

    async def test_a_layer_is_not_kept_over_another_template(self, pool: Pool) -> None:
        other = replace(KEEPING, vid="fedora-7/root")
        await pool.create((other,))
        await session(pool, KEEPING, "t")
        await session(pool, other, "f")
        await session(pool, KEPT, "a")
        moved = replace(KEPT, source=other.vid)
        assert await pool.layer_state(moved) is LayerState.OUTDATED
        assert await see(pool, moved) == "f"

    async def test_debug_mode_that_begins_while_the_vm_runs(self, pool: Pool) -> None:
        """Whatever becomes of the layer, the next start is from it or from the template, and not from a mixture."""
        await session(pool, KEEPING, "t")
        await pool.start(LAYER)
        write(pool.locate(LAYER), "a")
        await pool.stop(KEPT)
        is_there = await pool.layer_state(KEPT) is LayerState.CURRENT
        assert await see(pool, KEPT) == ("a" if is_there else "t")

    async def test_a_kept_layer_survives_a_daemon_that_dies(self, bench: Bench, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        await pool.start(KEPT)
        write(pool.locate(KEPT), "a")
        again = bench.open()
        await again.recover(frozenset((KEEPING.vid, IN_PLACE.vid, LAYER.vid)))
        assert holds(again.locate(KEPT), "a")
        await again.stop(KEPT)
        assert await see(again, KEPT) == "a"

    async def test_what_a_volatile_disk_held_is_never_taken_for_a_layer(self, bench: Bench, pool: Pool) -> None:
        """The VM got a kernel from the host for a while. Some drivers have one name for both."""
        await session(pool, KEEPING, "t")
        await session(pool, KEPT, "a")
        await session(pool, VOLATILE, "v")
        assert await see(pool, KEPT) in ("a", "t")
        await pool.stop(KEPT)
        await pool.start(VOLATILE)
        write(pool.locate(VOLATILE), "v")
        again = bench.open()
        await again.recover(frozenset((KEEPING.vid, IN_PLACE.vid, LAYER.vid, VOLATILE.vid)))
        assert await see(again, KEPT) in ("a", "t")
