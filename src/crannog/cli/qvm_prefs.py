"""qvm-prefs: show and change the properties of a VM."""

from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import end, run, say
from crannog.client.connection import Client
from crannog.errors import UsageError

COMMAND = Command(
    "qvm-prefs",
    "Show the properties of a VM, or show or change one.",
    Operand("vm", "VM", "the VM"),
    Operand("name", "PROPERTY", "the property; all are listed without it", "?"),
    Operand("value", "VALUE", "its new value", "?"),
    Option("--default", "--unset", "-D", help="give the property its default again"),
    Option("--help-properties", help="say what each property means"),
    examples="  qvm-prefs work\n  qvm-prefs work memory 600\n  qvm-prefs --default work memory",
)


def _act(options: Values) -> None:
    client = Client()
    if options.help_properties:
        _explain(client, options.vm)
    elif options.default:
        if options.name is None or options.value is not None:
            raise UsageError("--default takes a VM and a property, and no value")
        client.call("admin.vm.property.Reset", options.vm, options.name)
    elif options.name is None:
        _list(client, options.vm)
    elif options.value is None:
        say(client.text("admin.vm.property.Get", options.vm, options.name).split(" ", 2)[2])
    else:
        client.text("admin.vm.property.Set", options.vm, options.name, options.value)


def _list(client: Client, vm: str) -> None:
    rows = [line.split(" ", 3) for line in client.text("admin.vm.property.GetAll", vm).splitlines()]
    width = max(len(row[0]) for row in rows)
    for name, default, _type, value in rows:
        mark = "D" if default == "default=True" else "-"
        say(f"{name:{width}}  {mark}  {value}".rstrip())


def _explain(client: Client, vm: str) -> None:
    for name in client.text("admin.vm.property.List", vm).splitlines():
        say(f"{name:18} {client.text('admin.vm.property.Help', vm, name)}")


def main() -> None:
    """Run qvm-prefs."""
    end(run(COMMAND, _act))
