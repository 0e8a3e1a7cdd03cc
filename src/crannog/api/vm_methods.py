"""Methods that make and remove VMs (Admin API, section 6)."""

from crannog.api.table import Access, Call, Destination, Follow, Presence, Scope, method
from crannog.core.vms import CLASSES, AdminVM, QubeBase
from crannog.editing.population import NewVM
from crannog.errors import ProtocolError, ValueRefusedError

VM, ADMIN, ANY = Destination.VM, Destination.ADMIN, Destination.ANY
_POOL = "pool"
_POOL_OF = "pool:"


async def _create(call: Call, klass: str, *, may_choose_pools: bool) -> None:
    options = _parse_options(call.text(), may_choose_pools=may_choose_pools)
    if "name" not in options:
        raise ProtocolError("the payload names no VM")
    template = call.backend.registry.find_vm(call.argument) if call.argument else None
    pools = {key.removeprefix(_POOL).removeprefix(":"): value for key, value in options.items() if _is_pool(key)}
    if "" in pools and len(pools) > 1:
        raise ProtocolError("the payload has 'pool=' and 'pool:VOLUME=', which exclude each other")
    wanted = NewVM(klass, options["name"], options.get("label", ""), template, pools)
    await call.backend.population.create(wanted, created_by=call.source.name)


def _parse_options(text: str, *, may_choose_pools: bool) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in text.split(" "):
        key, separator, value = word.partition("=")
        is_known = key in ("name", "label") or (may_choose_pools and _is_pool(key))
        if not separator or not is_known or key in options:
            raise ProtocolError(f"the payload has a malformed word '{word[:80]}'")
        options[key] = value
    return options


def _is_pool(key: str) -> bool:
    return key == _POOL or (key.startswith(_POOL_OF) and key != _POOL_OF)


def _declare_create(klass: str) -> None:
    def declare(name: str, help_: str, *, may_choose_pools: bool) -> None:
        async def create(call: Call) -> None:
            await _create(call, klass, may_choose_pools=may_choose_pools)

        create.__doc__ = help_
        declared = method(
            f"admin.vm.{name}.{klass}",
            ADMIN,
            argument=Presence.OPTIONAL,
            payload=Presence.REQUIRED,
            access=Access.WRITE,
            scope=Scope.GLOBAL,
        )
        declared(create)

    plain = f"Make a VM of class {klass}, as `name=NAME label=LABEL`; the argument is its template, if any."
    declare("Create", plain, may_choose_pools=False)
    declare("CreateInPool", f"{plain[:-1]}. `pool=POOL` or `pool:VOLUME=POOL` ... say where.", may_choose_pools=True)


for _klass, _cls in CLASSES.items():
    if _cls is not AdminVM:
        _declare_create(_klass)


@method(
    "admin.vm.CreateDisposable",
    ANY,
    argument=Presence.OPTIONAL,
    payload=Presence.OPTIONAL,
    access=Access.WRITE,
    scope=Scope.GLOBAL,
)
async def create_disposable(call: Call) -> str:
    """Make a disposable from an AppVM, dom0 meaning the caller's default one; return its name, or `uuid:UUID`.

    The payload `uuid` asks for the UUID. The disposable is removed when it stops. One that was started in advance is
    taken, if there is one: it runs then. The argument `preload` starts one more in advance, which is nobody's yet.
    """
    if call.argument not in ("", "preload") or call.payload not in (b"", b"uuid"):
        raise ProtocolError("unexpected payload" if call.argument in ("", "preload") else "unexpected argument")
    template, backend, caller = _disposable_template(call), call.backend, call.source.name
    vm: QubeBase | None
    if call.argument:
        vm = await backend.power.preload(template)
    else:
        vm = await backend.power.take_preloaded(template, caller)
        vm = vm or await backend.population.create_disposable(template, created_by=caller)
    return f"uuid:{vm.uuid}" if call.payload else vm.name


@method("crannog.vm.Lease", ANY, access=Access.EXECUTE)
def lease(call: Call) -> Follow:
    """Use a disposable for as long as this connection lasts: when it ends, in whatever way, so does the disposable."""
    return Follow(lambda listener: call.backend.power.lease(call.vm, listener))


def _disposable_template(call: Call) -> QubeBase:
    if call.vm.klass != "AdminVM":
        return call.vm
    has_default = "default_dispvm" in call.source.declared()
    template = call.source.get("default_dispvm") if has_default else None
    if not isinstance(template, QubeBase):
        raise ValueRefusedError(
            f"{call.source.name} has no default_dispvm to make disposables from; name an AppVM, or set one with "
            f"'qvm-prefs {call.source.name} default_dispvm'"
        )
    return template


@method("crannog.vm.Clone", VM, argument=Presence.OPTIONAL, payload=Presence.REQUIRED, access=Access.WRITE)
async def clone(call: Call) -> None:
    """Make a VM with all settings and data of this one. The payload is its name, the argument its class if another."""
    await call.backend.population.clone(call.vm, call.text(), klass=call.argument, created_by=call.source.name)


@method("admin.vm.Remove", ANY, access=Access.WRITE, scope=Scope.GLOBAL)
async def remove(call: Call) -> None:
    """Remove a halted VM."""
    await call.backend.population.remove(call.vm)
