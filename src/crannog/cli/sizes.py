"""Sizes as people write them. The units are those of Qubes: K, M, G count by 1000, Ki, Mi, Gi by 1024."""

from crannog.errors import ValueRefusedError

_PREFIXES = "KMGT"
_UNITS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{letter + end: 1000**power for power, letter in enumerate(_PREFIXES, 1) for end in ("", "B")},
    **{letter + end: 1024**power for power, letter in enumerate(_PREFIXES, 1) for end in ("I", "IB")},
}
MAX_DIGITS = 19
"""Longest size in digits that the API takes (Admin API, section 6)."""


def parse_size(text: str) -> int:
    """Return a size in bytes: digits, then nothing or a unit (K, KB, Ki, KiB, ...); raises ValueRefusedError."""
    wanted = text.strip().upper()
    digits = wanted.rstrip("BIKMGT ")
    factor = _UNITS.get(wanted[len(digits) :].strip())
    if not (digits.isascii() and digits.isdigit()) or factor is None:
        raise ValueRefusedError(f"'{text}' is not a size; write bytes, or a number with a unit: 20GiB, 512MiB, 20G")
    size = int(digits[: MAX_DIGITS + 1]) * factor
    if len(digits) > MAX_DIGITS or len(str(size)) > MAX_DIGITS:
        raise ValueRefusedError(f"'{text}' is larger than any volume can be; sizes have at most {MAX_DIGITS} digits")
    return size


def show_size(size: int) -> str:
    """Return a size for a reader: 1.5 GiB."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}" if unit != "B" else f"{size} B"
