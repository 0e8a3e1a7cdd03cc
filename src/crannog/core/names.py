"""Which names a VM may have (Admin API, section 6)."""

import re

from crannog.errors import ValueRefusedError

MAX_LENGTH = 31
RESERVED = ("Domain-0", "dom0", "none", "None", "default")
"""`None` is how some files write that there is no VM."""

_PATTERN = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")


def check_name(name: str) -> str:
    """Return `name` if a VM may be called so; raise ValueRefusedError with the rule it breaks."""
    if len(name) > MAX_LENGTH:
        reason = f"it is longer than {MAX_LENGTH} characters"
    elif not _PATTERN.fullmatch(name):
        reason = "it must start with a letter and hold only letters, digits, '_', '.' and '-'"
    elif name in RESERVED:
        reason = "it is reserved"
    elif name.endswith("-dm"):
        reason = "names that end in '-dm' belong to device models"
    else:
        return name
    raise ValueRefusedError(f"'{name[:80]}' cannot be the name of a VM: {reason}; choose another name")
