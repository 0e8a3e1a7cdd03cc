"""Methods about the power of VMs, and what a running VM shows (Admin API, section 6)."""

from collections.abc import Callable

from crannog.api.table import Access, Call, Destination, Follow, Permission, Presence, Scope, method
from crannog.core.drives import Drive, parse_drive
from crannog.core.events import Event, Listener
from crannog.core.preload_wishes import is_nobodys
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.errors import DeniedError, ProtocolError, ValueRefusedError, VMNotHaltedError

ADMIN, ANY = Destination.ADMIN, Destination.ANY
EXECUTE = Access.EXECUTE


@method("admin.vm.Start", ANY, access=EXECUTE)
async def start(call: Call) -> None:
    """Start a VM; return when its agent answers, if it is known to have one."""
    await call.backend.power.start(_startable(call), StartRequest())


def _startable(call: Call) -> LocalVM:
    """Return the VM to start. What always runs is told as running: callers who want it running are content then."""
    if call.vm.fixed_state == "Running":
        raise VMNotHaltedError(f"{call.vm.name} cannot be started: it runs always")
    return call.local_vm


@method("crannog.vm.Start", ANY, argument=Presence.OPTIONAL, payload=Presence.OPTIONAL, access=EXECUTE)
async def start_with_options(call: Call) -> str:
    """Start a VM as `qvm-start` asks for it; return a line `SECONDS<tab>STAGE` for each stage.

    The argument is a list joined by `+`: `wait`, `nowait`, `dry-run` (then a line for each step is returned and
    nothing is done), `allow-device`. The payload is an image of this host to boot from, `cdrom:PATH` or `hd:PATH` with
    an absolute path; a path alone is a CD-ROM's. It is a regular file, or with `allow-device` a block device. Only
    dom0 may name one.
    """
    words = set(filter(None, call.argument.split("+")))
    if not words <= {"wait", "nowait", "dry-run", "allow-device"} or {"wait", "nowait"} <= words:
        raise ProtocolError("the argument of crannog.vm.Start is malformed")
    wait = True if "wait" in words else False if "nowait" in words else None
    request = StartRequest(wait=wait, drive=_drive(call, words) if call.payload else None)
    if "dry-run" in words:
        return "".join(step.describe() + "\n" for step in await call.backend.power.plan(_startable(call), request))
    stages = await call.backend.power.start(_startable(call), request)
    return "".join(f"{seconds:.6f}\t{stage}\n" for stage, seconds in stages)


def _drive(call: Call, words: set[str]) -> Drive:
    """Return the drive that the payload names. A VM that may start others gets no look at this host's files by that."""
    if call.source.klass != "AdminVM":
        raise DeniedError(f"{call.source.name} may not start a VM from an image: dom0 alone names files of the host")
    try:
        return parse_drive(call.payload.decode("utf-8", "surrogateescape"), may_be_device="allow-device" in words)
    except ValueRefusedError as error:
        raise ProtocolError(f"the payload is no drive: {error}") from None


@method("admin.vm.Shutdown", ANY, argument=Presence.OPTIONAL, access=EXECUTE)
async def shutdown(call: Call) -> None:
    """Ask a VM to shut down.

    The argument is a list joined by `+`: `wait` returns when it is halted; `force` asks also when running VMs get
    their network from it.
    """
    words = set(call.argument.split("+")) if call.argument else set()
    if not words <= {"force", "wait"}:
        raise ProtocolError("unexpected argument")
    if is_nobodys(call.vm):  # it is paused, and nobody has anything in it
        await call.backend.power.kill(call.local_vm)
        return
    await call.backend.power.shutdown(call.local_vm, force="force" in words, wait="wait" in words)


@method("admin.vm.Kill", ANY, access=EXECUTE)
async def kill(call: Call) -> None:
    """End a VM at once."""
    await call.backend.power.kill(call.local_vm)


@method("admin.vm.Pause", ANY, access=EXECUTE)
async def pause(call: Call) -> None:
    """Stop the processors of a running VM."""
    await call.backend.power.pause(call.local_vm)


@method("admin.vm.Unpause", ANY, access=EXECUTE)
async def unpause(call: Call) -> None:
    """Let a paused VM go on."""
    await call.backend.power.unpause(call.local_vm)


@method("admin.vm.Suspend", ANY, access=EXECUTE)
async def suspend(call: Call) -> None:
    """Put a running VM to sleep."""
    await call.backend.power.suspend(call.local_vm)


@method("admin.vm.Resume", ANY, access=EXECUTE)
async def resume(call: Call) -> None:
    """Wake a VM that sleeps."""
    await call.backend.power.resume(call.local_vm)


@method("admin.vm.CurrentState", ANY)
async def current_state(call: Call) -> str:
    """Return memory in KiB, CPU time in milliseconds and power state."""
    usage = await call.backend.power.usage(call.vm)
    mem, mem_max, cpu = (usage.memory, usage.memory_max, usage.cpu_time // 10**6) if usage else (0, 0, 0)
    state = call.vm.power_state
    return f"mem={mem} mem_static_max={mem_max} cputime={cpu} power_state={state}"


@method("crannog.vm.Screenshot", ANY)
async def screenshot(call: Call) -> bytes:
    """Return the emulated screen of a running VM as an image file's bytes."""
    return await call.backend.power.screenshot(call.local_vm)


@method("crannog.vm.Show", ANY, payload=Presence.OPTIONAL, access=EXECUTE)
async def show(call: Call) -> None:
    """Open the displays of a running VM that the user closed.

    From dom0 the payload may name the X display on which VMs are shown from now on: lines `DISPLAY=...` and
    `XAUTHORITY=...`.
    """
    if call.payload and call.source.klass != "AdminVM":
        raise ProtocolError("only dom0 says on which display VMs are shown")
    pairs = [line.partition("=") for line in call.payload.decode("ascii", "replace").splitlines()]
    environment = {name: value for name, _, value in pairs}
    if not environment.keys() <= {"DISPLAY", "XAUTHORITY"}:
        raise ProtocolError("unexpected payload")
    await call.backend.power.show(call.local_vm, environment)


@method("admin.vm.Console", ANY, access=Access.WRITE)
async def console(call: Call) -> str:
    """Return the path of the terminal on this host at which the console of a running VM is."""
    return await call.backend.power.console(call.local_vm)


@method("admin.vm.Stats", ANY, scope=Scope.GLOBAL, permission=Permission.EACH_VM)
def stats(call: Call) -> Follow:
    """Send event `vm-stats` of a VM, or of all that run, every `stats_interval` seconds."""

    def start(listener: Listener) -> Callable[[], None]:
        def pass_on(event: Event) -> None:
            vm = call.backend.registry.by_name(event.subject)
            if vm is not None and call.may_see(vm):
                listener(event)

        return call.backend.power.follow_stats(call.vm, pass_on)

    return Follow(start)


@method("crannog.Capabilities", ADMIN)
async def capabilities(call: Call) -> str:
    """Return what the host can run, as `key=value` lines."""
    found = await call.backend.power.capabilities()
    return f"accel={found.accel}\nhvm={found.has_hvm}\nemulator={found.emulator}\n"


@method("crannog.Diagnose", ADMIN)
async def diagnose(call: Call) -> str:
    """Return what the host can and cannot do, a sentence a line."""
    return "".join(line + "\n" for line in await call.backend.power.diagnose())
