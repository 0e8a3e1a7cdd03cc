"""docs/api.md and the policy files of the Admin API, made from the declarations of the methods."""

from collections.abc import Iterable

from crannog.api.methods import METHODS
from crannog.api.table import Access, Family, Method, Scope

POLICY_FILE = "90-admin-default.policy"
_FAMILIES = {
    Family.PUBLIC: "Public: `run/crannogd.sock`, `/var/run/qubesd.sock`",
    Family.INTERNAL: "Internal: `run/crannogd.internal.sock`, `/var/run/qubesd.internal.sock`",
    Family.MISC: "From guests' services: `run/crannogd.misc.sock`, `/var/run/qubesd.misc.sock`",
}
_INTRODUCTION = """# The Admin API

Made by `scripts/reference` from the table of methods (`crannog.api`); do not edit.

A request is `METHOD+ARGUMENT SOURCE name DESTINATION`, a NUL and the payload, up to end of file, at most 65,536 bytes.
The answer is `0`, a NUL and the data; or `2`, a NUL and, each ended by a NUL, the exception's class, our own name of
the error, and the message; or, where events are followed, `1`, a NUL, subject, event, keys and values, again and again.
What is no request is not answered at all.

Access: `r` reads, `w` changes what is stored, `x` acts on what runs. Scope: `local` is about one VM, `global` about the
system.
Methods that begin with `crannog.` are for Crannog's own tools and may change; all others are those of the Admin API.
"""
_FILTERED = """
## Filtered replies

To callers other than dom0, these methods tell only of what policy lets them see.

"""
_INCLUDES = {
    (Scope.LOCAL, False): "Methods that read from one VM.",
    (Scope.LOCAL, True): "Methods that change or act on one VM.",
    (Scope.GLOBAL, False): "Methods that read from the whole system.",
    (Scope.GLOBAL, True): "Methods that change the whole system, or make and remove VMs.",
}


def render_documentation() -> str:
    """Return docs/api.md."""
    parts = [_INTRODUCTION]
    for family, title in _FAMILIES.items():
        parts.append(f"\n## {title}\n\n| method | to | argument | payload | access | scope | what |\n|{'---|' * 7}\n")
        parts += [_row(method) for method in _sorted(family)]
    filtered = [method for family in Family for method in _sorted(family) if method.permission.name != "CALL"]
    parts.append(
        "\n## Filtered replies\n\nTo callers other than dom0, these methods tell only of what policy lets them see.\n\n"
    )
    parts += [f"- `{method.name}`: {method.permission.value}\n" for method in filtered]
    return "".join(parts)


def _sorted(family: Family) -> list[Method]:
    return sorted((method for method in METHODS.values() if method.family is family), key=lambda method: method.name)


def _row(method: Method) -> str:
    what = " ".join(method.help.split()).replace("|", "\\|")
    cells = (
        f"`{method.name}`",
        method.destination.value,
        method.argument.value,
        method.payload.value,
        _letters(method.access),
        method.scope.value,
        what,
    )
    return f"| {' | '.join(cells)} |\n"


def _letters(access: Access) -> str:
    letters = {Access.READ: "r", Access.WRITE: "w", Access.EXECUTE: "x"}
    return "".join(letter for flag, letter in letters.items() if flag in access)


def render_policy() -> dict[str, str]:
    """Return the policy files, by their paths below policy.d: the default policy and what it includes.

    Nothing is allowed in them: an administrator adds lines to the includes.
    """
    files = {f"include/{include_name(*key)}": _render_include(*key, text) for key, text in _INCLUDES.items()}
    lines = [f"!include-service {method.name} * include/{_include_of(method)}" for method in _offered()]
    heading = "# Made by scripts/reference: which include decides who may call which method of the Admin API.\n"
    return files | {POLICY_FILE: heading + "".join(line + "\n" for line in lines)}


def _offered() -> Iterable[Method]:
    """Yield the methods that can be offered to VMs: those of the Admin API itself."""
    return (method for method in _sorted(Family.PUBLIC) if method.name.startswith("admin."))


def include_name(scope: Scope, is_changing: bool) -> str:
    """Return the name of an include, such as admin-local-ro."""
    return f"admin-{scope.value}-{'rwx' if is_changing else 'ro'}"


def _include_of(method: Method) -> str:
    return include_name(method.scope, method.access != Access.READ)


def _render_include(scope: Scope, is_changing: bool, text: str) -> str:
    name = include_name(scope, is_changing)
    target = "@tag:created-by-mgmt" if scope is Scope.LOCAL else "@adminvm"
    return (
        f"# {text}\n# {POLICY_FILE} includes this file for each of them. Nobody is allowed anything until a line is "
        f"added, such as:\n#   mgmt {target} allow target=dom0\n# This is {name}.\n"
    )
