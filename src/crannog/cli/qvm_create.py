"""qvm-create: create a VM."""

from __future__ import annotations

import os

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.request import refuse_odd_name, refuse_odd_value
from crannog.cli.tool import complain, end, refuse_odd_word, run, say
from crannog.errors import CrannogError, StorageError, UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

CLASSES = ("AppVM", "DispVM", "RemoteVM", "StandaloneVM", "TemplateVM")
VOLUMES = ("root", "private", "volatile")
DEFAULT_CLASS, DEFAULT_LABEL = "AppVM", "red"
COMMAND = Command(
    "qvm-create",
    "Create a VM. It is halted then; qvm-start starts it.",
    Operand("name", "NAME", "name of the new VM", "?"),
    Option("--class", "-C", metavar="CLASS", help=f"one of {', '.join(CLASSES)} (default: {DEFAULT_CLASS})"),
    Option("--standalone", help="the same as --class StandaloneVM; with --template, the VM begins as its copy"),
    Option("--disp", help="the same as --class DispVM"),
    Option(
        "--template",
        "-t",
        metavar="VM",
        help="template of an AppVM, AppVM that a DispVM starts from, TemplateVM that a StandaloneVM is a copy of; "
        "without it AppVMs and DispVMs get the one that qubes-prefs names",
    ),
    Option("--label", "-l", metavar="LABEL", help=f"colour of its trust level (default: {DEFAULT_LABEL})"),
    Option("--property", "--prop", metavar="NAME=VALUE", is_repeated=True, help="set a property; may be repeated"),
    Option("-P", "--in-pool", metavar="POOL", help="pool for all its volumes"),
    Option("--pool", "-p", metavar="VOLUME=POOL", is_repeated=True, help="pool for one volume; may be repeated"),
    Option("--root-copy-from", "-r", metavar="FILE", help="raw image to copy into the root volume"),
    Option("--root-move-from", "-R", metavar="FILE", help="the same; the file is deleted then"),
    Option("--help-classes", help="list the classes"),
    *COMMON,
    OFFLINE,
    examples=(
        "  qvm-create --template debian-12 --label green work\n"
        "  qvm-create --class StandaloneVM --property virt_mode=hvm --label red other-os\n"
        "  qvm-create --standalone --template debian-12 server\n"
        "  qvm-create -t debian-12 --pool private=big work\n"
        "  qvm-create --offline --template debian-12 --label green work"
    ),
)


class Wish:
    """The VM that the command line asks for; raises UsageError or ValueRefusedError when it asks for nonsense."""

    def __init__(self, options: Values) -> None:
        self.name: str = options.name
        properties = [_split("--property", text) for text in options.property]
        # These two belong to the creation itself, however they are given.
        early = {name: value for name, value in properties if name in ("template", "label")}
        self.properties = [(name, value) for name, value in properties if name not in early]
        self.template: str = options.template or early.get("template", "")
        self.label: str = options.label or early.get("label", "") or DEFAULT_LABEL
        self.klass = _find_class(options)
        self.pools = _find_pools(options)
        self.root: str = options.root_copy_from or options.root_move_from
        self._check()

    def _check(self) -> None:
        refuse_odd_class(self.klass)
        refuse_odd_word("the name of a VM", self.name)
        refuse_odd_word("a label", self.label)
        for name, value in self.properties:
            refuse_odd_name("property", name)
            refuse_odd_value(f"property '{name}'", value)
        if self.is_copy and (self.pools or self.root):
            raise UsageError("a StandaloneVM with a --template is a copy of it: it takes no pools and no image")

    @property
    def is_copy(self) -> bool:
        """Tell whether the VM begins as a copy of its template, and has none afterwards."""
        return self.klass == "StandaloneVM" and bool(self.template)


def _create(options: Values) -> None:
    if options.help_classes:
        say("\n".join(CLASSES))
        return
    if options.name is None:
        raise UsageError("name the new VM")
    wish = Wish(options)
    client = open_client(COMMAND.program, options)
    _make(client, wish)
    try:
        for name, value in wish.properties:
            client.text("admin.vm.property.Set", wish.name, name, value)
        if wish.root:
            client.text("crannog.vm.volume.ImportFile", wish.name, "root", os.path.abspath(wish.root))
    except (CrannogError, KeyboardInterrupt):
        _take_back(client, wish.name)
        raise
    if options.root_move_from:
        _delete(options.root_move_from)


def _make(client: Caller, wish: Wish) -> None:
    if wish.is_copy:
        client.text("crannog.vm.Clone", wish.template, wish.klass, wish.name)
        wish.properties.insert(0, ("label", wish.label))
        return
    method = f"admin.vm.CreateInPool.{wish.klass}" if wish.pools else f"admin.vm.Create.{wish.klass}"
    words = [f"name={wish.name}", f"label={wish.label}", *wish.pools]
    client.text(method, "dom0", wish.template, " ".join(words))


def _take_back(client: Caller, vm: str) -> None:
    """Remove a VM that did not become what it should. What went wrong first is what the user is told last."""
    try:
        client.call("admin.vm.Remove", vm)
    except CrannogError as error:
        complain(COMMAND.program, f"{vm} was made, but is not as it should be, and stays: {error}")


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise StorageError(f"the VM was created, but {path} cannot be deleted: {error.strerror}") from error


def _find_class(options: Values) -> str:
    chosen = [getattr(options, "class")] if getattr(options, "class") else []
    chosen += [
        klass for klass, is_given in (("StandaloneVM", options.standalone), ("DispVM", options.disp)) if is_given
    ]
    if len(chosen) > 1:
        raise UsageError("--class, --standalone and --disp exclude each other")
    return chosen[0] if chosen else DEFAULT_CLASS


def _find_pools(options: Values) -> list[str]:
    """Return the words that say in which pools the volumes shall be (Admin API, admin.vm.CreateInPool)."""
    if options.in_pool and options.pool:
        raise UsageError("-P names the pool of all volumes, --pool that of one; give one of the two")
    if options.root_copy_from and options.root_move_from:
        raise UsageError("--root-copy-from and --root-move-from exclude each other")
    words = []
    if options.in_pool:
        refuse_odd_word("the name of a pool", options.in_pool)
        words.append(f"pool={options.in_pool}")
    for text in options.pool:
        volume, pool = _split("--pool", text, "VOLUME=POOL")
        if volume not in VOLUMES:
            raise UsageError(f"--pool: there is no volume '{volume[:80]}'; the volumes are {', '.join(VOLUMES)}")
        refuse_odd_word("the name of a pool", pool)
        words.append(f"pool:{volume}={pool}")
    return words


def refuse_odd_class(klass: str) -> None:
    """Raise ValueRefusedError for a class that no VM can be made of."""
    if klass not in CLASSES:
        raise ValueRefusedError(f"VMs of class '{klass}' cannot be created; the classes are {', '.join(CLASSES)}")


def _split(option: str, text: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"{option} takes {form}, not '{text[:80]}'")
    return name, value


def main() -> None:
    """Run qvm-create."""
    end(run(COMMAND, _create))
