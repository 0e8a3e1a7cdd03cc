"""Labels: the colour that tells the user how far a VM is trusted (Admin API, section 6)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """A named colour. `index` numbers it from 1; `color` is `0xRRGGBB`."""

    index: int
    name: str
    color: str


BUILT_IN = (
    Label(1, "red", "0xcc0000"),
    Label(2, "orange", "0xf57900"),
    Label(3, "yellow", "0xedd400"),
    Label(4, "green", "0x73d216"),
    Label(5, "gray", "0x555555"),
    Label(6, "blue", "0x3465a4"),
    Label(7, "purple", "0x75507b"),
    Label(8, "black", "0x000000"),
)
