"""Methods about VMs: lists, creation, removal, power (Admin API, section 6)."""

from crannog.api.table import Call, Destination, Presence, method
from crannog.core.startup import StartRequest
from crannog.core.vms import CLASSES, AdminVM, QubeBase
from crannog.editing.population import NewVM
from crannog.errors import ProtocolError, ValueRefusedError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY


@method("admin.vmclass.List", ADMIN)
async def list_classes(call: Call) -> str:
    """Return the class names, a line each."""
    del call
    return "".join(f"{name}\n" for name in CLASSES)


def _sorted_vms(call: Call) -> list[QubeBase]:
    if call.vm.klass != "AdminVM":
        return [call.vm]
    return sorted(call.backend.registry, key=lambda vm: (vm.klass != "AdminVM", vm.name))


@method("admin.vm.List", ANY)
async def list_vms(call: Call) -> str:
    """Return name, class, state and UUID of all VMs, or of the one addressed, a line each."""
    return "".join(f"{vm.name} class={vm.klass} state={vm.power_state} uuid={vm.uuid}\n" for vm in _sorted_vms(call))


@method("crannog.vm.Table", ANY, argument=Presence.REQUIRED)
async def list_table(call: Call) -> str:
    """Return one line a VM with the asked columns, tab-separated.

    The argument is a list of property names joined by `+`, `state` among them. One call instead of one for each VM and
    property is what keeps qvm-ls quick.
    """
    columns = call.argument.split("+")
    known = {name for cls in CLASSES.values() for name in cls.declared()} | {"state"}
    unknown = [column for column in columns if column not in known]
    if unknown:
        raise ValueRefusedError(f"'{unknown[0][:80]}' is not a column; the columns are {', '.join(sorted(known))}")
    lines = ["\t".join(_cell(call, vm, column) for column in columns) for vm in _sorted_vms(call)]
    return "".join(line + "\n" for line in lines)


def _cell(call: Call, vm: QubeBase, column: str) -> str:
    if column == "state":
        return vm.power_state
    declared = vm.declared().get(column)
    return declared.kind.format(vm.get(column)) if declared else "-"


async def _create(call: Call, klass: str) -> None:
    options = {}
    for word in call.text().split(" "):
        key, separator, value = word.partition("=")
        if not separator or key not in ("name", "label") or key in options:
            raise ProtocolError(f"the payload has a malformed word '{word[:80]}'")
        options[key] = value
    if "name" not in options:
        raise ProtocolError("the payload names no VM")
    template = call.backend.registry.find_vm(call.argument) if call.argument else None
    wanted = NewVM(klass, options["name"], options.get("label", ""), template)
    await call.backend.create(wanted, created_by=call.source)


def _declare_create(klass: str) -> None:
    @method(
        f"admin.vm.Create.{klass}",
        ADMIN,
        argument=Presence.OPTIONAL,
        payload=Presence.REQUIRED,
        is_writing=True,
    )
    async def create(call: Call) -> None:
        await _create(call, klass)


for _klass, _cls in CLASSES.items():
    if _cls is not AdminVM:
        _declare_create(_klass)


@method("crannog.vm.Clone", VM, argument=Presence.OPTIONAL, payload=Presence.REQUIRED, is_writing=True)
async def clone(call: Call) -> None:
    """Make a VM with all settings and data of this one. The payload is its name, the argument its class if another."""
    await call.backend.clone(call.vm, call.text(), klass=call.argument, created_by=call.source)


@method("admin.vm.Remove", VM, is_writing=True)
async def remove(call: Call) -> None:
    """Remove a halted VM."""
    await call.backend.remove(call.vm)


@method("admin.vm.Start", VM, is_writing=True)
async def start(call: Call) -> None:
    """Start a VM; return when its agent answers, if it is known to have one."""
    await call.backend.start(call.local_vm, StartRequest())


@method("crannog.vm.Start", VM, argument=Presence.OPTIONAL, payload=Presence.OPTIONAL, is_writing=True)
async def start_with_options(call: Call) -> str:
    """Start a VM as `qvm-start` asks for it; return a line `SECONDS<tab>STAGE` for each stage.

    The argument is a list joined by `+`: `wait`, `nowait`, `dry-run` (then a line for each step is returned and
    nothing is done). The payload is the absolute path of an image to boot from as a CD-ROM.
    """
    words = set(filter(None, call.argument.split("+")))
    if not words <= {"wait", "nowait", "dry-run"} or {"wait", "nowait"} <= words:
        raise ProtocolError("the argument of crannog.vm.Start is malformed")
    wait = True if "wait" in words else False if "nowait" in words else None
    request = StartRequest(wait=wait, cdrom=call.path() if call.payload else "")
    if "dry-run" in words:
        return "".join(step.describe() + "\n" for step in await call.backend.plan(call.local_vm, request))
    stages = await call.backend.start(call.local_vm, request)
    return "".join(f"{seconds:.6f}\t{stage}\n" for stage, seconds in stages)


@method("admin.vm.Shutdown", VM, argument=Presence.OPTIONAL, is_writing=True)
async def shutdown(call: Call) -> None:
    """Ask a VM to shut down; `wait` returns when it is halted."""
    words = set(filter(None, call.argument.split("+")))
    if not words <= {"force", "wait"}:
        raise ProtocolError("unexpected argument")
    await call.backend.shutdown(call.local_vm, wait="wait" in words)


@method("admin.vm.Kill", VM, is_writing=True)
async def kill(call: Call) -> None:
    """End a VM at once."""
    await call.backend.kill(call.local_vm)


@method("admin.vm.CurrentState", ANY)
async def current_state(call: Call) -> str:
    """Return memory in KiB, CPU time in milliseconds and power state."""
    usage = await call.backend.usage(call.vm)
    mem, mem_max, cpu = (usage.memory, usage.memory_max, usage.cpu_time // 10**6) if usage else (0, 0, 0)
    state = call.vm.power_state
    return f"mem={mem} mem_static_max={mem_max} cputime={cpu} power_state={state}"


@method("crannog.vm.Screenshot", VM)
async def screenshot(call: Call) -> bytes:
    """Return the emulated screen of a running VM as an image file's bytes."""
    return await call.backend.screenshot(call.local_vm)
