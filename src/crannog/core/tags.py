"""Tags: names that a VM has or has not, and those that follow from its settings (Admin API, section 6)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crannog.errors import DeniedError, TagRefusedError

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase

CREATED_BY = "created-by-"
FOLLOWING = {"guivm": "guivm-", "audiovm": "audiovm-"}
"""Properties whose VM is shown by a tag, with the tag's prefix."""

INHERITED_FEATURE = "tag-created-vm-with"
"""Feature of a VM that creates others: the tags that those get, separated by blanks."""

_TAG = re.compile(r"[A-Za-z0-9_-]{1,255}")
_SHOWN_NAME = re.compile(r"[^A-Za-z0-9_-]")


def check_tag(tag: str) -> str:
    """Return `tag` if it can be one; raises TagRefusedError."""
    if not _TAG.fullmatch(tag):
        raise TagRefusedError("a tag holds letters, digits, _ and - only, at most 255 of them")
    return tag


def check_tag_is_free(tag: str) -> None:
    """Raise DeniedError for tags that tell who created a VM: they would be believed."""
    if tag.startswith(CREATED_BY):
        raise DeniedError(f"tag '{tag[:80]}' says who created a VM and cannot be changed by hand")


def creation_tags(creator: QubeBase) -> set[str]:
    """Return the tags that a VM gets because of who creates it. A malformed one in the feature is passed over."""
    wanted = creator.features.get(INHERITED_FEATURE, "").split()
    fitting = {tag for tag in wanted if _TAG.fullmatch(tag) and not tag.startswith(CREATED_BY)}
    return fitting | {f"{CREATED_BY}{_shown(creator)}"}


def claim_tags(user: QubeBase) -> set[str]:
    """Return the tags of a disposable that say for whom it was made, or who has claimed it."""
    return {f"disp-{tag}" for tag in creation_tags(user) if tag.startswith(CREATED_BY)}


def handed_over(tags: set[str], user: QubeBase) -> set[str]:
    """Return the tags of a disposable that was made in advance and that `user` gets now."""
    kept = {tag for tag in tags if not tag.removeprefix("disp-").startswith(CREATED_BY)}
    return kept | creation_tags(user) | claim_tags(user)


def following_tags(vm: QubeBase) -> set[str]:
    """Return the tags that follow from the VM's properties as they are now."""
    declared = vm.declared()
    others = {prefix: vm.get(name) for name, prefix in FOLLOWING.items() if name in declared}
    return {prefix + _shown(other) for prefix, other in others.items() if other is not None}


def _shown(vm: QubeBase) -> str:
    """Return a VM's name as part of a tag: names may have dots, tags may not."""
    return _SHOWN_NAME.sub("_", vm.name)
