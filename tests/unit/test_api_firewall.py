"""The methods about firewall rules, byte for byte, and where the rules go when VMs come, go and change."""

import errno
import os
from pathlib import Path

import pytest

from crannog.adapters.store import texts
from crannog.adapters.store.file import FileStore
from crannog.api.framing import Request
from crannog.api.methods import answer
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing.firewall import Firewall
from crannog.editing.population import NewVM
from crannog.errors import InUseError, ProtocolError, StateError, StorageError, ValueRefusedError
from crannog.offline.backend import OfflineBackend
from tests.fakes import Inside, add_vm, build_inside, template_and_app

GET, SET, RELOAD = (f"admin.vm.firewall.{name}" for name in ("Get", "Set", "Reload"))
RULES = b"action=accept proto=tcp dst4=1.2.3.4 dstports=80 comment=hi there\naction=drop"
CANONICAL = b"action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-80 comment=hi there\naction=drop\n"


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    inside = build_inside(tmp_path)
    template_and_app(inside.registry)
    inside.registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    inside.store.save(inside.registry)
    return inside


async def call(inside: Inside, method: str, vm: str = "work", payload: bytes = b"", argument: str = "") -> bytes:
    return await answer(inside.inventory, Request(method, argument, "dom0", vm, payload))


def listen(inside: Inside) -> list[tuple[str, str, dict[str, str]]]:
    told: list[tuple[str, str, dict[str, str]]] = []
    inside.inventory.editor.listen(lambda event: told.append((event.subject, event.name, event.arguments)))
    return told


def rules_file(inside: Inside, vm: QubeBase | None = None) -> Path:
    return Path(inside.paths.home, "firewall", f"{(vm or inside.registry.find_vm('work')).uuid}.txt")


async def test_a_vm_without_rules_has_the_default(inside: Inside) -> None:
    assert await call(inside, GET) == b"action=accept\n"
    assert not rules_file(inside).exists()


async def test_set_and_get(inside: Inside) -> None:
    told = listen(inside)
    assert await call(inside, SET, payload=RULES) == b""
    assert told == [("work", "firewall-changed", {})]
    assert await call(inside, GET) == CANONICAL
    assert rules_file(inside).read_bytes() == CANONICAL
    assert await call(inside, SET, payload=CANONICAL) == b""
    assert await call(inside, GET) == CANONICAL
    assert await call(inside, GET, "debian") == b"action=accept\n"


async def test_no_rule_is_something_else_than_the_default(inside: Inside) -> None:
    await call(inside, SET)
    assert await call(inside, GET) == b""
    assert rules_file(inside).read_bytes() == b""


async def test_expired_rules_are_not_returned(inside: Inside) -> None:
    now = [99.0]
    firewall = Firewall(inside.inventory.editor, lambda: now[0])
    inside.inventory.firewall = firewall
    await call(inside, SET, payload=b"action=accept expire=100\naction=drop\n")
    assert await call(inside, GET) == b"action=accept expire=100\naction=drop\n"
    now[0] = 100.0
    assert await call(inside, GET) == b"action=drop\n"


async def test_reload_only_tells(inside: Inside) -> None:
    told = listen(inside)
    assert await call(inside, RELOAD) == b""
    assert told == [("work", "firewall-changed", {})]
    assert not rules_file(inside).exists()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"action=accept\naction=x\n", "rule 2"),
        (b"\n", "rule 1"),
        (b"\xff", "printable"),
        (b"action=accept\0", "printable"),
        (b"action=drop\n" * 1001, "too many"),
    ],
)
async def test_refused_rules_change_nothing(inside: Inside, payload: bytes, reason: str) -> None:
    await call(inside, SET, payload=RULES)
    told = listen(inside)
    with pytest.raises(ValueRefusedError, match=reason):
        await call(inside, SET, payload=payload)
    assert (await call(inside, GET), told) == (CANONICAL, [])


@pytest.mark.parametrize("method", [GET, SET, RELOAD])
async def test_wrong_calls(inside: Inside, method: str) -> None:
    with pytest.raises(ProtocolError, match="expected destination to not be AdminVM"):
        await call(inside, method, "dom0")
    with pytest.raises(ProtocolError, match="unexpected argument"):
        await call(inside, method, argument="x")
    with pytest.raises(StateError, match="far is of class RemoteVM"):
        await call(inside, method, "far")
    if method != SET:
        with pytest.raises(ProtocolError, match="unexpected payload"):
            await call(inside, method, payload=b"x")


async def test_rules_that_cannot_be_saved_are_not_told(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    await call(inside, SET, payload=RULES)
    told = listen(inside)

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(texts, "write_whole", refuse)
    with pytest.raises(StorageError, match="the firewall rules cannot be written: No space left on device; the old"):
        await call(inside, SET, payload=b"action=drop")
    assert (await call(inside, GET), told) == (CANONICAL, [])


@pytest.mark.parametrize("content", [b"nonsense\n", b"\xff\n", b"\n"])
async def test_a_spoilt_file_is_not_taken_for_other_rules(inside: Inside, content: bytes) -> None:
    await call(inside, SET, payload=RULES)
    rules_file(inside).write_bytes(content)
    with pytest.raises(StorageError, match="firewall rules of work cannot be used"):
        await call(inside, GET)
    await call(inside, SET, payload=RULES)
    assert await call(inside, GET) == CANONICAL


async def test_rules_stay_with_their_vm(inside: Inside) -> None:
    await call(inside, SET, payload=RULES)
    await answer(inside.inventory, Request("admin.vm.property.Set", "name", "dom0", "work", b"desk"))
    assert await call(inside, GET, "desk") == CANONICAL


async def test_rules_go_with_their_vm(inside: Inside) -> None:
    await call(inside, SET, payload=RULES)
    path = rules_file(inside)
    work = inside.registry.find_vm("work")
    work.volumes.clear()
    await inside.inventory.population.remove(work)
    assert not path.exists()


async def clone(inside: Inside, source: QubeBase) -> QubeBase:
    return await inside.inventory.population.clone(source, "copy", klass="", created_by="dom0")


@pytest.fixture
def lean(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Return an inside whose pool makes no files: what is cloned here is what stands beside the volumes."""

    async def nothing(*_arguments: object) -> None:
        return

    async def give_target(_source: Volume, target: Volume, *_more: object) -> Volume:
        return target

    for name in ("create", "claim", "remove"):
        monkeypatch.setattr(inside.pool, name, nothing)
    monkeypatch.setattr(inside.pool, "clone", give_target)
    return inside


async def test_a_clone_has_the_rules(lean: Inside) -> None:
    await call(lean, SET, payload=RULES)
    copy = await clone(lean, lean.registry.find_vm("work"))
    assert await call(lean, GET, "copy") == CANONICAL
    await call(lean, SET, "copy", b"action=drop")
    assert await call(lean, GET) == CANONICAL
    assert rules_file(lean, copy).read_bytes() == b"action=drop\n"


async def test_a_clone_of_a_vm_without_rules_has_none_of_its_own(lean: Inside) -> None:
    copy = await clone(lean, lean.registry.find_vm("work"))
    assert await call(lean, GET, "copy") == b"action=accept\n"
    assert not rules_file(lean, copy).exists()


async def test_a_clone_that_fails_leaves_no_rules(lean: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    await call(lean, SET, payload=RULES)

    def refuse(*_arguments: object) -> None:
        raise InUseError("on purpose")

    monkeypatch.setattr(lean.registry, "add", refuse)
    with pytest.raises(InUseError):
        await clone(lean, lean.registry.find_vm("work"))
    assert os.listdir(rules_file(lean).parent) == [rules_file(lean).name]


async def test_a_disposable_has_the_rules_of_the_vm_it_comes_from(lean: Inside) -> None:
    dvm = add_vm(lean.registry, "AppVM", "dvm", lean.registry.find_vm("debian"))
    dvm.set("template_for_dispvms", value=True)
    await call(lean, SET, "dvm", RULES)
    await lean.inventory.population.create(NewVM("DispVM", "disp1", "", dvm), created_by="dom0")
    assert await call(lean, GET, "disp1") == CANONICAL
    await lean.inventory.population.create(
        NewVM("AppVM", "app", "", lean.registry.find_vm("debian")), created_by="dom0"
    )
    assert await call(lean, GET, "app") == b"action=accept\n"


async def test_offline(inside: Inside) -> None:
    backend = OfflineBackend(inside.paths, FileStore(inside.paths.store, inside.paths.kernels))
    assert await answer(backend, Request(GET, "", "dom0", "work", b"")) == b"action=accept\n"
    assert await answer(backend, Request(SET, "", "dom0", "work", RULES)) == b""
    assert await answer(backend, Request(GET, "", "dom0", "work", b"")) == CANONICAL
    assert await call(inside, GET) == CANONICAL
