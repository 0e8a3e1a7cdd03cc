"""What the host tells the agent of a guest that was just restored. Pure."""

from typing import NamedTuple


class RenewOrder(NamedTuple):
    """Who the guest is from now on.

    `number` is a word of letters and digits that the agent announces when all is done. `seed` is random, and nobody
    else's: the kernel's random numbers were the same in all guests that were restored from one image.
    """

    number: str
    uuid: str
    name: str
    nanoseconds: int
    """The time, since 1970 (UTC)."""
    seed: bytes

    def encode(self) -> bytes:
        """Return the value of the guest DB's entry: the fields as words, the seed in hexadecimal digits."""
        return f"{self.number} {self.uuid} {self.name} {self.nanoseconds} {self.seed.hex()}".encode("ascii")
