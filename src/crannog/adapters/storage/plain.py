"""Driver plain: a layer is a copy. It works wherever there are files, and takes the most time and space.

It is so simple that the other drivers can be measured against it.
"""

from crannog.adapters.storage.raw import RawPool


class PlainPool(RawPool):
    """A folder of raw files, each with data of its own (see ports.storage.Pool)."""

    driver = "plain"
    raw_copy = ("cp", "--sparse=always", "--reflink=never", "--")
