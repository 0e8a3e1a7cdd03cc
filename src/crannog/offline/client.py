"""The client of offline mode: the calls of `client.connection.Client`, answered in this process."""

import asyncio
import logging
import os

from crannog.adapters.store.file import FileStore
from crannog.api import methods
from crannog.api.framing import parse_request
from crannog.api.table import Family
from crannog.client.connection import check_destination
from crannog.config import Paths
from crannog.errors import CrannogError, StorageError
from crannog.offline.backend import OfflineBackend
from crannog.shortpath import provide_short_path

log = logging.getLogger(__name__)


SPANNING = "internal.vm.volume."
"""Methods whose work spans several calls, each of which is a process of its own here: they are not served."""


class OfflineClient:
    """Answers calls on the store of one home, whose lock it holds until the process ends or `close` is called.

    Making one raises DaemonError while a daemon runs, StorageError when the store cannot be used.
    """

    def __init__(self, paths: Paths | None = None, *, tool: str = "a tool") -> None:
        self.paths = paths or Paths()
        logging.basicConfig(format=f"{tool}: %(message)s", level=logging.WARNING)
        _make_home(self.paths)
        self.store = FileStore(self.paths.store, self.paths.kernels)
        self.store.lock.acquire(tool)
        try:
            self.backend = OfflineBackend(self.paths, self.store)
        except BaseException:
            self.store.lock.release()
            raise
        for remark in self.store.remarks:
            log.warning("%s", remark)

    def call(self, method: str, destination: str = "dom0", argument: str = "", payload: bytes = b"") -> bytes:
        """Return the data of a method's reply; raises the error that answers it."""
        check_destination(destination)
        header = f"{method}+{argument} dom0 name {destination}".encode("utf-8", "surrogateescape")
        request = parse_request(header + b"\0" + payload)
        try:
            return asyncio.run(methods.answer(self.backend, request, _family_of(method)))
        except CrannogError:
            raise
        except Exception as error:
            log.debug("%s failed", method, exc_info=True)
            raise CrannogError(f"{method} failed by an error of our own: {type(error).__name__}: {error}") from error

    def text(self, method: str, destination: str = "dom0", argument: str = "", payload: str = "") -> str:
        """Call a method whose payload and reply are text."""
        data = self.call(method, destination, argument, payload.encode("utf-8", "surrogateescape"))
        return data.decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Let go of the store."""
        self.store.lock.release()


def _family_of(method: str) -> Family:
    """Return the socket at which the daemon would serve a method: this process may use them all."""
    is_served = method in methods.METHODS and not method.startswith(SPANNING)
    return methods.METHODS[method].family if is_served else Family.PUBLIC


def _make_home(paths: Paths) -> None:
    try:
        os.makedirs(paths.home, mode=0o700, exist_ok=True)
        provide_short_path(paths.home)
        os.makedirs(paths.pools, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{paths.home} cannot be used: {error.strerror} ({error.filename})") from error
