"""qvm-create: create a VM."""

import os

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import end, refuse_odd_word, run
from crannog.errors import CrannogError, UsageError, ValueRefusedError

CLASSES = ("AppVM", "DispVM", "RemoteVM", "StandaloneVM", "TemplateVM")
COMMAND = Command(
    "qvm-create",
    "Create a VM. It is halted then; qvm-start starts it.",
    Operand("name", "NAME", "name of the new VM"),
    Option("--class", "-C", metavar="CLASS", default="AppVM", help=f"one of {', '.join(CLASSES)} (default: AppVM)"),
    Option(
        "--template",
        "-t",
        metavar="VM",
        help="template of an AppVM, or AppVM that a DispVM starts from; without it the one that qubes-prefs names",
    ),
    Option("--label", "-l", metavar="LABEL", default="red", help="colour of its trust level (default: red)"),
    Option("--property", "--prop", metavar="NAME=VALUE", is_repeated=True, help="set a property; may be repeated"),
    Option("--root-copy-from", "-r", metavar="FILE", help="raw image to copy into the root volume"),
    OFFLINE,
    examples=(
        "  qvm-create --template debian-12 --label green work\n"
        "  qvm-create --class StandaloneVM --property virt_mode=hvm --label red other-os\n"
        "  qvm-create --offline --template debian-12 --label green work"
    ),
)


def _create(options: Values) -> None:
    properties = [_split(text) for text in options.property]
    klass = getattr(options, "class")
    refuse_odd_class(klass)
    refuse_odd_word("the name of a VM", options.name)
    refuse_odd_word("a label", options.label)
    client = open_client(COMMAND.program, options)
    client.text(
        f"admin.vm.Create.{klass}",
        "dom0",
        options.template,
        f"name={options.name} label={options.label}",
    )
    try:
        for name, value in properties:
            client.text("admin.vm.property.Set", options.name, name, value)
        if options.root_copy_from:
            client.text("crannog.vm.volume.ImportFile", options.name, "root", os.path.abspath(options.root_copy_from))
    except (CrannogError, KeyboardInterrupt):
        client.call("admin.vm.Remove", options.name)
        raise


def refuse_odd_class(klass: str) -> None:
    """Raise ValueRefusedError for a class that no VM can be made of."""
    if klass not in CLASSES:
        raise ValueRefusedError(f"VMs of class '{klass}' cannot be created; the classes are {', '.join(CLASSES)}")


def _split(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--property takes NAME=VALUE, not '{text}'")
    return name, value


def main() -> None:
    """Run qvm-create."""
    end(run(COMMAND, _create))
