"""What crannogd and the parent of the RPC processes say to each other, over a pair of sockets.

    crannogd -> parent   length of what follows, with the descriptors of standard input and of the log (unix(7),
                         SCM_RIGHTS); then the fields of the Place and the environment's NAME=VALUE, NUL after each
    parent -> crannogd   the child's number, with its pidfd; or the negative errno(3) of why there is none

Both ends are ours, and of one version: the parent ends with the daemon that started it.
"""

import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from crannog.rpc.place import Place

HEADER = struct.Struct("<I")
ANSWER = struct.Struct("<i")
FDS = 2
"""Standard input and the log."""
GO = b"+"
"""What a child reads from its standard input before it begins: without it, crannogd does not know of the child."""


class Birth(NamedTuple):
    """What a child is born with, beside its descriptors."""

    place: Place
    environment: Mapping[str, str]
    """All of it: nothing of the parent's own environment is there."""

    def encode(self) -> bytes:
        """Return it as it is sent, without its length."""
        texts = (*self.place, *(f"{name}={value}" for name, value in self.environment.items()))
        return b"".join(os.fsencode(text) + b"\0" for text in texts)

    @classmethod
    def decode(cls, body: bytes) -> "Birth":
        """Return what was encoded."""
        texts = [os.fsdecode(word) for word in body.split(b"\0")[:-1]]
        count = len(Place._fields)
        pairs = (text.partition("=") for text in texts[count:])
        return cls(Place(*texts[:count]), {name: value for name, _, value in pairs})
