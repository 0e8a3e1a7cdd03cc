"""What every driver keeps to: volumes that are empty at each start of their VM."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.volumes import Volume
from crannog.ports.storage import Pool
from tests.contract.benches import ALL, SIZE, Bench, Contract, holds, peek, see, write

VOLATILE = Volume("volatile", "p", "work-2/volatile", SIZE)
SECRET = b"s" * SIZE


class VolatileContract(Contract):
    """Volumes that neither begin with content nor leave any."""

    @pytest.mark.parametrize("revisions", [0, 2])
    async def test_a_volatile_volume_is_there_while_its_vm_runs(self, bench: Bench, pool: Pool, revisions: int) -> None:
        """Whatever a file from elsewhere says of revisions: there are none."""
        volume = replace(VOLATILE, revisions_to_keep=revisions)
        before = bench.contents()
        for letter in "ab":
            await pool.start(volume)
            assert peek(pool.locate(volume)) == peek(pool.locate(volume), SIZE - 4096) == "\0"
            write(pool.locate(volume), letter)
            assert holds(pool.locate(volume), letter)
            assert 0 <= pool.usage(volume) < SIZE // 2
            await pool.stop(volume)
            assert (pool.usage(volume), pool.revisions(volume), bench.contents()) == (0, [], before)

    async def test_what_a_crash_left_of_a_volatile_volume_is_never_seen_again(self, bench: Bench, pool: Pool) -> None:
        before = bench.contents()
        await pool.start(VOLATILE)
        write(pool.locate(VOLATILE), "m")
        again = bench.open()
        await again.recover(ALL | {VOLATILE.vid})
        larger = await again.resize(VOLATILE, 3 * SIZE)
        for _ in range(2):
            await again.start(larger)
            location = again.locate(larger)
            assert peek(location) == peek(location, 3 * SIZE - 4096) == "\0"
            write(location, "n")
        assert not await again.is_outdated(larger)
        await again.abandon(larger)
        assert (again.usage(larger), bench.contents()) == (0, before)

    async def test_a_link_in_the_place_of_a_volatile_volume_is_never_followed(self, pool: Pool, tmp_path: Path) -> None:
        path = pool.locate(VOLATILE).path
        if pool.locate(VOLATILE).is_block:
            return  # nobody but root can put anything there
        secret = tmp_path / "secret"
        secret.write_bytes(SECRET)
        os.symlink(secret, path)
        assert await see(pool, VOLATILE) == "\0"
        await pool.start(VOLATILE)
        os.unlink(path)
        os.symlink(secret, path)
        await pool.stop(VOLATILE)
        assert secret.read_bytes() == SECRET
        assert not os.path.lexists(path)
