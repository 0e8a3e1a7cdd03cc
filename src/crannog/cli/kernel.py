"""crannog kernel: the kernels in pool linux-kernel, which pv and pvh VMs get from the host."""

from __future__ import annotations

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.request import refuse_odd_name
from crannog.cli.template import Progress, hand_over_kernel, list_kernels
from crannog.cli.tool import run, say
from crannog.errors import InUseError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.images.kernelsource import KernelSource

COMMAND = Command(
    "crannog kernel",
    "List the kernels in pool linux-kernel, add one, or remove one that no VM names and that is not the default. "
    "'crannog template build' adds the one that its template needs.",
    Operand("action", "list|add|remove", "what to do"),
    Operand(
        "name", "NAME", "the kernel to remove, or what the new one is called (default: its release, and a mark)", "?"
    ),
    Option("--package", metavar="PACKAGE", help="add the kernel of this package of the distribution"),
    Option("--from-package", metavar="FILE", help="add the kernel of a Debian package that is a file on this host"),
    Option("--release", metavar="RELEASE", help="add a kernel that this host has in /boot, such as $(uname -r)"),
    Option("--all-modules", help="keep modules for hardware that VMs do not have here as well"),
    Option("--recipe", metavar="RECIPE", default="debian-12", help="the distribution (default: debian-12)"),
    Option("--mirror", metavar="URI", help="package mirror (default: the distribution's)"),
    Option("--refresh", help="fetch the newest packages instead of using the cache"),
    OFFLINE,
    examples=(
        "  crannog kernel list\n  crannog kernel add --package linux-image-amd64\n"
        "  crannog kernel add mine --release 6.1.0-37-amd64\n"
        "  crannog kernel add --from-package linux-image-6.1.0-37-amd64_6.1.140-1_amd64.deb\n"
        "  crannog kernel remove 6.1.0-37-1a2b3c4d"
    ),
)
_MARKS = "_.+-"
_SOURCES = ("package", "from_package", "release")


def _act(options: Values) -> None:
    if options.action not in ("list", "add", "remove"):
        raise UsageError(f"'{options.action}' is neither list nor add nor remove")
    if options.action == "list" and options.name:
        raise UsageError("list takes no name")
    if options.action == "remove" and not options.name:
        raise UsageError("name the kernel; 'crannog kernel list' lists them")
    if options.name is not None:
        refuse_odd_name("kernel", options.name, _MARKS)
    {"list": _list, "add": _add, "remove": _remove}[options.action](options)


def _list(options: Values) -> None:
    for name in list_kernels(open_client(COMMAND.program, options)):
        say(name)


def _remove(options: Values) -> None:
    open_client(COMMAND.program, options).text("crannog.kernel.Remove", "dom0", options.name)


def _add(options: Values) -> None:
    """Make the kernel in this process, which may take a minute, then hand it over."""
    from crannog.images.kernel import build_kernel
    from crannog.images.recipe import find_recipe

    if len([name for name in _SOURCES if getattr(options, name)]) > 1:
        raise UsageError("a kernel comes from one of --package, --from-package and --release")
    client, report = open_client(COMMAND.program, options), Progress()
    if options.name in list_kernels(client):
        raise InUseError(f"there is a kernel '{options.name}' already; choose another name, or remove it first")
    recipe = find_recipe(options.recipe, options.mirror)
    image = build_kernel(
        client.paths.cache,
        report,
        recipe=recipe,
        source=_choose_source(options),
        has_all_modules=options.all_modules,
        refresh=options.refresh,
    )
    say(hand_over_kernel(client, report, image, options.name or ""))


def _choose_source(options: Values) -> KernelSource | None:
    """Return where the kernel is to come from; None for the package that the recipe names itself."""
    from dataclasses import replace

    from crannog.images.kernelsource import FileSource, HostSource, RecipeSource
    from crannog.images.recipe import find_recipe

    if options.from_package:
        return FileSource(options.from_package)
    if options.release:
        return HostSource(options.release)
    if options.package:
        refuse_odd_name("package", options.package, _MARKS)
        return RecipeSource(replace(find_recipe(options.recipe, options.mirror), kernel_package=options.package))
    return None


def main(arguments: list[str]) -> int:
    """Run crannog kernel."""
    return run(COMMAND, _act, arguments)
