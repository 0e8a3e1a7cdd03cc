"""crannogd's log. Guests can cause lines in it, so the file is bounded, as that of decisions is."""

import contextlib
import logging
import os

MAX_BYTES = 16 * 2**20
"""Size at which the log becomes the old one, in the place of the one before."""
OLD = ".1"


class BoundedLog(logging.FileHandler):
    """Appends to the log at a path, in a new file when it has grown large. It is lighter than logging.handlers."""

    def __init__(self, path: str, most: int = MAX_BYTES) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._most = most

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. While there can be no new file, the old one goes on."""
        with contextlib.suppress(OSError):
            if self.stream and os.fstat(self.stream.fileno()).st_size >= self._most:
                os.replace(self.baseFilename, self.baseFilename + OLD)
                self.stream.close()
                self.stream = self._open()
        super().emit(record)
