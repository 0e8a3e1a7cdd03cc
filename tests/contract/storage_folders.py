"""What the drivers keep to besides whose pools are folders: rights, links, disks that fail."""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.volumes import Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool
from tests.contract.benches import (
    ALL,
    IN_PLACE,
    KEEPING,
    LAYER,
    SIZE,
    Contract,
    FolderBench,
    image,
    own,
    see,
    session,
    write,
)

SECRET = b"s" * SIZE


def fail(*_arguments: object) -> None:
    raise OSError(5, os.strerror(5))


class FolderContract(Contract):
    """Files and folders."""

    async def test_nobody_else_can_read_or_write_anything(self, bench: FolderBench, pool: Pool, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            await pool.import_file(KEEPING, image(tmp_path, "a"))
            copy = replace(KEEPING, vid="copy-3/root")
            await pool.create((copy,))
            await pool.clone(KEEPING, copy)
            await session(pool, KEEPING, "b")
            for volume in (KEEPING, LAYER, IN_PLACE):
                await pool.start(volume)
            await pool.begin_import(copy, SIZE)
            bench.open("other")
            await bench.open("third").recover(ALL)
        finally:
            os.umask(old)
        paths = [bench.folder / "p", *(bench.folder / "p").rglob("*")]
        modes = {str(path): path.lstat().st_mode & 0o777 for path in paths}
        assert [path for path, mode in modes.items() if mode & 0o077] == []
        assert {mode for path, mode in modes.items() if os.path.isdir(path)} == {0o700}
        assert len(modes) > 10

    @own
    @pytest.mark.parametrize("what", ["newest", "session", "half-made", "import", "layer"])
    async def test_a_link_in_the_place_of_a_file_is_never_followed(
        self, bench: FolderBench, pool: Pool, volume: Volume, what: str, tmp_path: Path
    ) -> None:
        """Somebody planted it: what it leads to is neither read nor written, and never given to a guest."""
        secret = tmp_path / "secret"
        secret.write_bytes(SECRET)
        await session(pool, volume, "a")
        plant(places(bench, pool, volume)[what], secret)
        again = bench.open()
        if what == "newest":
            with pytest.raises(StorageError, match=r"/p/.* is a link, which no volume may be; put the file itself"):
                await again.start(volume)
        acts: list[Callable[[], Awaitable[object]]] = [
            lambda: again.start(volume),
            lambda: again.stop(volume),
            lambda: again.abandon(volume),
            lambda: again.import_file(volume, image(tmp_path, "i")),
            lambda: again.clear(volume),
            lambda: again.resize(volume, 2 * SIZE),
            lambda: again.finish_import(volume, SIZE),
            lambda: again.begin_import(volume, SIZE),
            lambda: again.start(LAYER),
            lambda: again.stop(LAYER),
            lambda: again.clone(volume, replace(IN_PLACE, vid="copy-3/private")),
        ]
        await again.create((replace(IN_PLACE, vid="copy-3/private"),))
        for act in acts:
            with suppress(StorageError):
                await act()
            assert secret.read_bytes() == SECRET
        assert not leads_to(again, volume, secret)
        assert not leads_to(again, LAYER, secret)
        assert not [path for path in (bench.folder / "p").rglob("*") if path.is_file() and has_secret(path)]

    @own
    async def test_a_link_in_the_place_of_a_vms_folder_is_refused(
        self, bench: FolderBench, pool: Pool, volume: Volume
    ) -> None:
        folder = bench.folder / "p" / volume.vid.partition("/")[0]
        elsewhere = bench.folder / "elsewhere"
        os.rename(folder, elsewhere)
        folder.symlink_to(elsewhere)
        before = sorted(os.listdir(elsewhere))
        for act in (pool.start, pool.stop, pool.clear, pool.trim, pool.abandon):
            with pytest.raises(StorageError, match=f"^{folder} is a link, which no folder of a VM may be"):
                await act(volume)
        for act_on_all in (pool.create, pool.claim, pool.remove):
            with pytest.raises(StorageError, match=f"^{folder} is a link, which no folder of a VM may be"):
                await act_on_all((volume,))
        await pool.recover(ALL)
        assert sorted(os.listdir(elsewhere)) == before

    async def test_a_start_that_fails_never_forgets_a_former_session(
        self, bench: FolderBench, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Crannogd died while the VM ran; the next start cannot keep what it wrote, and is undone."""
        await pool.start(KEEPING)
        write(pool.locate(KEEPING), "m")
        again = bench.open()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StorageError, match="cannot be kept"):
                await again.start(KEEPING)
            await again.abandon(KEEPING)
        assert await see(again, KEEPING) == "m"

    @own
    @pytest.mark.parametrize("change", ["import_file", "finish_import", "clear", "resize", "revert"])
    async def test_what_cannot_be_written_changes_nothing(
        self, bench: FolderBench, pool: Pool, volume: Volume, change: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if change in ("revert", "resize") and volume is (IN_PLACE if change == "revert" else KEEPING):
            return
        for letter in "ab":
            await pool.import_file(volume, image(tmp_path, letter))
        before = bench.contents()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StorageError, match="Input/output error"):
                await CHANGES[change](pool, volume, image(tmp_path, "i"))
        if change != "resize":
            assert bench.contents() == before
        assert await see(pool, volume) == "b"


async def _finish_import(pool: Pool, volume: Volume) -> None:
    await pool.begin_import(volume, SIZE)
    await pool.finish_import(volume, SIZE)


CHANGES: dict[str, Callable[[Pool, Volume, str], Awaitable[object]]] = {
    "import_file": lambda pool, volume, path: pool.import_file(volume, path),
    "finish_import": lambda pool, volume, _path: _finish_import(pool, volume),
    "clear": lambda pool, volume, _path: pool.clear(volume),
    "resize": lambda pool, volume, _path: pool.resize(volume, 2 * SIZE),
    "revert": lambda pool, volume, _path: pool.revert(volume, pool.revisions(volume)[-1]),
}


def places(bench: FolderBench, pool: Pool, volume: Volume) -> dict[str, str]:
    base = str(bench.folder / "p" / volume.vid)
    return {
        "newest": pool.newest(volume.vid).path,
        "session": pool.locate(replace(volume, revisions_to_keep=1)).path,
        "half-made": base + ".new",
        "import": base + ".import.new",
        "layer": pool.locate(LAYER).path,
    }


def plant(path: str, target: Path) -> None:
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def leads_to(pool: Pool, volume: Volume, target: Path) -> bool:
    """Tell whether a guest would be given what a link leads to."""
    try:
        return os.path.realpath(pool.locate(volume).path) == str(target)
    except StorageError:
        return False


def has_secret(path: Path) -> bool:
    return not path.is_symlink() and SECRET[:4096] in path.read_bytes()
