"""The logs of the domains that are there, kept from growing for ever."""

import asyncio
import contextlib

from crannog.adapters.libvirt import console

_SECONDS = 5.0
"""Between two looks at their lengths."""


class ConsoleLogs:
    """What guests and QEMU write, by the UUID of the domain; shortened while `keep` runs."""

    def __init__(self) -> None:
        self._paths: dict[str, tuple[str, ...]] = {}

    def add(self, uuid: str, *paths: str) -> None:
        """Look after these files from now on; empty names are no files."""
        self._paths[uuid] = tuple(filter(None, paths))

    def drop(self, uuid: str) -> None:
        """Look after a domain's files no more."""
        self._paths.pop(uuid, None)

    def uuids(self) -> set[str]:
        """Return the domains that are there as far as the logs know."""
        return set(self._paths)

    async def keep(self) -> None:
        """Shorten what has grown too long, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            for path in [path for paths in self._paths.values() for path in paths]:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(console.shorten_log, path)
