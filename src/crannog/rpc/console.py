"""`python -m crannog.rpc.console FILE`: print the end of a guest's console, cleaned of everything but printable text.

What a guest writes to its console is hostile: escape sequences could rewrite the terminal of whoever reads it.
"""

import os
import re
import sys

MAX_BYTES = 4096
MAX_LINES = 12
MAX_COLUMNS = 160

_ESCAPE_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def clean_tail(untrusted_bytes: bytes) -> str:
    """Return the last lines of a console as printable ASCII; everything else becomes `?`."""
    untrusted_text = _ESCAPE_SEQUENCE.sub(b"", untrusted_bytes).decode("ascii", "replace")
    lines = []
    for untrusted_line in re.split(r"[\r\n]+", untrusted_text):
        line = "".join(c if c.isascii() and c.isprintable() else "?" for c in untrusted_line[:MAX_COLUMNS]).rstrip()
        if line:
            lines.append("  | " + line)
    return "\n".join(lines[-MAX_LINES:])


def read_tail(path: str) -> bytes:
    """Return the last bytes of the file at `path`; nothing when there is no file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_BYTES))
            return file.read(MAX_BYTES)
    except OSError:
        return b""


if __name__ == "__main__":
    print(clean_tail(read_tail(sys.argv[1])))
