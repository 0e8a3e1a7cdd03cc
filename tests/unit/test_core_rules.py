"""The rules between VMs, labels, pools and global properties: what each refuses, in which words, and what it lets pass.

Changes are written as `VM.PROPERTY=VALUE`, or without the value for a reset; without the VM they are global.
"""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crannog.core import rules
from crannog.core.devices import Assignment
from crannog.core.labels import BUILT_IN, Label
from crannog.core.names import RESERVED
from crannog.core.pools import PoolConfig
from crannog.core.properties import Holder
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import (
    CrannogError,
    InUseError,
    LabelInUseError,
    PoolInUseError,
    ProtocolError,
    ValueRefusedError,
    VMExistsError,
)
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app

Act = Callable[[Registry], object]


def make_registry() -> Registry:
    """Return a registry with VMs of all kinds; none refers to another but by its template."""
    registry = new_registry()
    template, _ = template_and_app(registry)
    add_vm(registry, "AppVM", "dvm", template).set("template_for_dispvms", value=True)
    add_vm(registry, "DispVM", "disp", registry.find_vm("dvm"))
    add_vm(registry, "StandaloneVM", "alone")
    for name in ("net", "fw", "vpn", "tor", "wifi"):
        add_vm(registry, "StandaloneVM", name).set("provides_network", value=True)
    registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    return registry


@pytest.fixture
def registry() -> Registry:
    return make_registry()


def snapshot(registry: Registry) -> object:
    return registry.state(), [vm.state() for vm in registry]


def find(registry: Registry, name: str) -> QubeBase:
    return registry.find_vm(name)


def do(registry: Registry, changes: str) -> None:
    """Make the changes, which are separated by blanks."""
    for change in changes.split():
        target, separator, text = change.partition("=")
        name, _, key = target.rpartition(".")
        holder: Holder = registry.find_vm(name) if name else registry
        if separator:
            holder.set(key, holder.find_property(key).kind.parse(text, registry))
        else:
            holder.reset(key)


def refuse(registry: Registry, act: Act, kind: type[CrannogError], *words: str) -> None:
    """Assert that `act` is refused with a sentence that has all the words, and that nothing has changed."""
    before = snapshot(registry)
    with pytest.raises(kind) as caught:
        act(registry)
    assert type(caught.value) is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert snapshot(registry) == before


NO_NETWORK = "provides no network; allow it with 'qvm-prefs {0} provides_network True'"
SERVES_ITSELF = "{0} would serve itself in the end"
NO_DISPOSABLES = "it must be an AppVM, and 'qvm-prefs {0} template_for_dispvms True' allows it"
REFUSED = [
    # Before, the change, the words.
    ("", "work.netvm=alone", f"alone {NO_NETWORK.format('alone')}"),
    ("", "work.netvm=dom0", "dom0 provides no network"),
    ("", "work.netvm=far", "far provides no network"),
    ("", "debian.netvm=work", "work provides no network"),
    ("", "net.netvm=net", "networks have no loops"),
    ("net.netvm=fw", "fw.netvm=net", "net gets its network from fw, so fw cannot get its own from net"),
    ("net.netvm=fw fw.netvm=vpn vpn.netvm=tor tor.netvm=wifi", "wifi.netvm=net", "tor gets its network from wifi"),
    ("", "default_netvm=work", f"work {NO_NETWORK.format('work')}"),
    ("", "default_netvm=dom0", "dom0 provides no network"),
    ("", "work.guivm=work", f"work cannot be the guivm of work: {SERVES_ITSELF.format('work')}"),
    ("", "work.audiovm=work", f"work cannot be the audiovm of work: {SERVES_ITSELF.format('work')}"),
    ("work.guivm=alone", "alone.guivm=work", f"work cannot be the guivm of alone: {SERVES_ITSELF.format('alone')}"),
    ("work.audiovm=alone", "alone.audiovm=work", "work cannot be the audiovm of alone: alone would serve itself"),
    ("net.guivm=fw fw.guivm=vpn vpn.guivm=tor tor.guivm=wifi", "wifi.guivm=net", "net cannot be the guivm of wifi"),
    ("default_guivm=alone", "alone.guivm=alone", "alone cannot be the guivm of alone"),
    ("default_guivm=alone", "alone.guivm=work", "work cannot be the guivm of alone"),
    ("default_audiovm=alone", "alone.audiovm=work", "work cannot be the audiovm of alone"),
    ("work.guivm=alone", "default_guivm=work", f"work cannot be the guivm of alone: {SERVES_ITSELF.format('alone')}"),
    ("work.audiovm=alone", "default_audiovm=work", "work cannot be the audiovm of alone"),
    ("net.guivm=fw fw.guivm=vpn", "default_guivm=net", "net cannot be the guivm of vpn: vpn would serve itself"),
    ("work.guivm=dom0 default_guivm=alone alone.guivm=work", "work.guivm", "alone cannot be the guivm of work"),
    ("work.audiovm= default_audiovm=alone alone.audiovm=work", "work.audiovm", "alone cannot be the audiovm of work"),
    ("", "work.default_dispvm=work", f"work is no template for disposables; {NO_DISPOSABLES.format('work')}"),
    ("", "default_dispvm=debian", f"debian is no template for disposables; {NO_DISPOSABLES.format('debian')}"),
    ("", "management_dispvm=dom0", "dom0 is no template for disposables"),
    ("", "work.management_dispvm=disp", "disp is no template for disposables"),
    ("", "dom0.default_dispvm=far", "far is no template for disposables"),
    ("", "disp.default_dispvm=alone", "alone is no template for disposables"),
    ("", "disp.template=work", "disp: a DispVM starts from an AppVM that allows it, which work is not"),
    ("", "disp.template=debian", "disp: a DispVM starts from an AppVM that allows it, which debian is not; choose"),
    ("", "work.template=dvm", "work: dvm is of class AppVM and cannot be a template"),
    ("", "work.template=alone", "work: alone is a StandaloneVM of virt_mode pvh; only an HVM can be a template then"),
    ("", "work.template=", "AppVM needs a template"),
    ("", "default_template=work", "work is of class AppVM and cannot be the template of new VMs"),
    ("", "default_template=dom0", "dom0 is of class AdminVM"),
    ("", "default_template=far", "far is of class RemoteVM"),
    ("", "default_template=alone", "alone is of class StandaloneVM"),
    ("", "default_pool=big", "there is no pool 'big' (there: vm-pool, linux-kernel)"),
    ("", "default_pool_private=", "there is no pool ''"),
    ("", "default_pool_kernel=big", "there is no pool 'big'"),
    ("", "work.kernel=4.0", f"there is no kernel '4.0' in pool linux-kernel (there: {KERNEL})"),
    ("", "default_kernel=4.0", f"there is no kernel '4.0' in pool linux-kernel (there: {KERNEL})"),
    ("", "work.virt_mode=hvm", "template debian is made for virt_mode pvh, not hvm"),
    ("work.virt_mode=pv", "debian.virt_mode=hvm", "debian is the template of work"),
    ("", "work.keyboard_layout=de", "'de' is no keyboard layout; write LAYOUT+VARIANT+OPTIONS, such as us++"),
    ("", "dom0.devices_denied=usb", "'usb' is no list of interface codes"),
]


@pytest.mark.parametrize(("before", "change", "words"), REFUSED)
def test_what_is_refused_leaves_everything_as_it_was(registry: Registry, before: str, change: str, words: str) -> None:
    do(registry, before)
    refuse(registry, lambda registry: do(registry, change), ValueRefusedError, words)


IN_USE = [
    ("work.netvm=net", "net.provides_network=False", "net provides the network of work; give that another netvm"),
    ("work.netvm=net", "net.provides_network", "net provides the network of work"),
    ("debian.netvm=net", "net.provides_network=False", "net provides the network of debian"),
    ("default_netvm=net", "net.provides_network=False", "work, dvm, disp, alone, global property default_netvm"),
    ("", "dvm.template_for_dispvms=False", "dvm is the template for disposables of disp (template)"),
    ("default_dispvm=dvm", "dvm.template_for_dispvms", "disp (template), global property default_dispvm"),
    ("dom0.default_dispvm=dvm", "dvm.template_for_dispvms=False", "dom0 (default_dispvm), disp (template)"),
    ("work.management_dispvm=dvm", "dvm.template_for_dispvms=False", "work (management_dispvm)"),
    ("management_dispvm=dvm", "dvm.template_for_dispvms=False", "global property management_dispvm"),
]


@pytest.mark.parametrize(("before", "change", "words"), IN_USE)
def test_what_others_need_is_not_switched_off(registry: Registry, before: str, change: str, words: str) -> None:
    do(registry, before)
    refuse(registry, lambda registry: do(registry, change), InUseError, words)


@pytest.mark.parametrize(
    "changes",
    [
        "work.netvm=net work.netvm=fw work.netvm= work.netvm",
        "net.netvm=fw fw.netvm=vpn vpn.netvm=tor tor.netvm=wifi work.netvm=net",
        "net.netvm=fw net.netvm= fw.netvm=net",
        "default_netvm=net default_netvm=fw net.provides_network=False",
        "work.netvm=net work.netvm= net.provides_network=False net.provides_network=True work.netvm=net",
        "net.provides_network=True net.provides_network=False net.provides_network",
        "work.guivm=alone alone.guivm=net net.guivm=dom0",
        "work.guivm=alone work.guivm alone.guivm=work",
        "work.guivm= work.audiovm=far",
        "default_guivm=alone work.guivm=alone work.guivm",
        "alone.guivm= default_guivm=alone alone.guivm alone.guivm=dom0 default_guivm",
        "alone.audiovm= default_audiovm=alone alone.audiovm alone.audiovm=dom0 default_audiovm",
        "work.guivm=alone alone.audiovm=work default_guivm=alone default_audiovm=work work.guivm",
        "default_guivm=far default_audiovm=far alone.guivm=far default_guivm= default_audiovm=",
        "work.guivm=dom0 alone.guivm=work default_guivm=alone",
        "default_dispvm=dvm work.default_dispvm=dvm work.default_dispvm= dvm.default_dispvm=dvm disp.default_dispvm",
        "default_template=debian default_template= default_template=debian default_template",
        "alone.virt_mode=hvm default_template=alone work.template=alone work.template=debian",
        "default_pool=linux-kernel default_pool_root=vm-pool default_pool",
        f"work.kernel= work.kernel={KERNEL} work.kernel default_kernel= default_kernel={KERNEL}",
        "dom0.devices_denied=u03****b****** dom0.devices_denied= dom0.keyboard_layout=de++",
    ],
)
def test_what_passes(registry: Registry, changes: str) -> None:
    for change in changes.split():
        do(registry, change)
        target, separator, text = change.partition("=")
        name, _, key = target.rpartition(".")
        holder: Holder = registry.find_vm(name) if name else registry
        assert holder.is_default(key) is not bool(separator)
        assert not separator or holder.describe(key).endswith(f" {text}")


def test_a_network_of_any_length_ends(registry: Registry) -> None:
    """Also when a file should have brought a loop in: nothing hangs."""
    net, fw = find(registry, "net"), find(registry, "fw")
    net.values["netvm"], fw.values["netvm"] = fw, net
    do(registry, "work.netvm=net")
    assert find(registry, "work").netvm is net


def test_a_vm_may_show_the_windows_of_the_one_that_plays_its_sound(registry: Registry) -> None:
    do(registry, "alone.audiovm=net net.guivm=alone")
    assert find(registry, "net").get("guivm") is find(registry, "alone")


@pytest.mark.parametrize("kind", ["guivm", "audiovm"])
def test_a_global_default_makes_no_loop(registry: Registry, kind: str) -> None:
    do(registry, f"work.{kind}=alone")
    words = f"work cannot be the {kind} of alone: alone would serve itself in the end"
    refuse(registry, lambda registry: do(registry, f"default_{kind}=work"), ValueRefusedError, words)


@pytest.mark.parametrize("kind", ["guivm", "audiovm"])
def test_one_vm_that_serves_all_others_takes_over_from_another(registry: Registry, kind: str) -> None:
    do(registry, f"default_{kind}=alone default_{kind}=net")
    assert find(registry, "alone").get(kind) is find(registry, "work").get(kind) is find(registry, "net")
    assert find(registry, "net").get(kind) is registry.dom0


def makes_loop(registry: Registry, kind: str) -> bool:
    """Tell whether some VM serves itself in the end, by asking what each VM says now."""
    for vm in registry:
        seen: list[QubeBase] = []
        server: QubeBase | None = vm
        while server is not None and kind in server.declared():
            if server in seen:
                return True
            seen.append(server)
            server = server.get(kind)
    return False


HOLDERS, SERVERS = ("", "work", "alone", "net", "fw"), ("", "dom0", "far", "work", "alone", "net", "fw")
SERVED = st.tuples(st.sampled_from(HOLDERS), st.sampled_from((None, *SERVERS)))


@settings(max_examples=150)
@given(st.sampled_from(("guivm", "audiovm")), st.lists(SERVED, min_size=4, max_size=12))
def test_what_makes_a_loop_is_refused_and_nothing_else(kind: str, changes: list[tuple[str, str | None]]) -> None:
    registry = make_registry()
    for name, server in changes:
        holder: Holder = registry.find_vm(name) if name else registry
        key = kind if name else f"default_{kind}"
        before = dict(holder.values)
        if server is None:
            holder.values.pop(key, None)
        else:
            holder.values[key] = registry.find_vm(server) if server else None
        is_loop = makes_loop(registry, kind)
        holder.values = before
        try:
            do(registry, f"{name}.{key}".lstrip(".") + (f"={server}" if server is not None else ""))
            is_refused = False
        except ValueRefusedError:
            is_refused = True
        # Global ones can be refused without need: test_one_vm_that_serves_all_others_takes_over_from_another.
        assert is_refused or not is_loop
        assert is_loop or not is_refused or not name
        assert not makes_loop(registry, kind)


LABEL = Label(9, "pink", "0xff00ff")


def with_label(registry: Registry, *users: str) -> None:
    registry.labels["pink"] = LABEL
    for name in users:
        find(registry, name).set("label", LABEL)


@pytest.mark.parametrize("label", BUILT_IN)
def test_a_built_in_label_stays(registry: Registry, label: Label) -> None:
    refuse(
        registry, lambda registry: rules.label_removal(registry, label), ProtocolError, f"'{label.name}' is built in"
    )


@pytest.mark.parametrize("name", ["dom0", "debian", "disp", "far"])
def test_a_label_in_use_stays(registry: Registry, name: str) -> None:
    with_label(registry, name)
    words = f"label 'pink' is in use by {name}; give that another label first"
    refuse(registry, lambda registry: rules.label_removal(registry, LABEL), LabelInUseError, words)


def test_at_most_five_users_are_named(registry: Registry) -> None:
    with_label(registry, "debian", "work", "dvm", "disp", "alone", "net")
    with pytest.raises(LabelInUseError, match="is in use by debian, work, dvm, disp, alone; give"):
        rules.label_removal(registry, LABEL)


def test_a_label_that_nobody_has_may_go(registry: Registry) -> None:
    with_label(registry, "work")
    do(registry, "work.label=red")
    rules.label_removal(registry, LABEL)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (f"work.kernel={KERNEL}", f"kernel '{KERNEL}' is in use by work, global property default_kernel"),
        (f"work.kernel={KERNEL} default_kernel=", f"kernel '{KERNEL}' is in use by work; choose another kernel there"),
        ("", f"kernel '{KERNEL}' is in use by global property default_kernel"),
    ],
)
def test_a_kernel_in_use_stays(registry: Registry, before: str, words: str) -> None:
    do(registry, before)
    refuse(registry, lambda registry: rules.kernel_removal(registry, KERNEL), InUseError, words)


def test_a_kernel_that_nobody_uses_may_go(registry: Registry) -> None:
    do(registry, "default_kernel=")
    rules.kernel_removal(registry, KERNEL)


def test_a_pool_with_volumes_stays(registry: Registry) -> None:
    words = "pool 'vm-pool' is in use by debian, work, dvm, disp, alone"
    refuse(registry, lambda registry: rules.pool_removal(registry, "vm-pool"), PoolInUseError, words)


@pytest.mark.parametrize("key", ["default_pool", "default_pool_root", "default_pool_volatile", "default_pool_kernel"])
def test_a_default_pool_stays(registry: Registry, key: str) -> None:
    registry.add_pool(PoolConfig("big", "qcow2"))
    rules.pool_removal(registry, "big")
    do(registry, f"{key}=big")
    words = f"pool 'big' is in use by global property {key}"
    refuse(registry, lambda registry: rules.pool_removal(registry, "big"), PoolInUseError, words)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vm-pool", ("default_pool", "default_pool_private", "default_pool_root", "default_pool_volatile")),
        ("linux-kernel", ("default_pool_kernel",)),
    ],
)
def test_a_pool_that_is_the_default_without_being_chosen_stays(name: str, keys: tuple[str, ...]) -> None:
    words = f"pool '{name}' is in use by {', '.join(f'global property {key}' for key in keys)}"
    refuse(Registry(), lambda registry: rules.pool_removal(registry, name), PoolInUseError, words)


def test_a_pool_that_is_no_longer_the_default_may_go() -> None:
    registry = Registry()
    registry.add_pool(PoolConfig("big", "qcow2"))
    do(registry, "default_pool=big default_pool_kernel=big")
    for name in ("vm-pool", "linux-kernel"):
        rules.pool_removal(registry, name)


def device_of(backend: str) -> Assignment:
    return Assignment("block", (("backend-domain", backend), ("id", "sda")))


@pytest.mark.parametrize(
    ("before", "name", "words"),
    [
        ("", "debian", "debian is in use by work (template), dvm (template); change or remove that first"),
        ("", "dvm", "dvm is in use by disp (template)"),
        ("work.netvm=net", "net", "net is in use by work (netvm)"),
        ("default_netvm=net", "net", "net is in use by global property default_netvm"),
        ("work.guivm=alone", "alone", "alone is in use by work (guivm)"),
        ("work.audiovm=far", "far", "far is in use by work (audiovm)"),
        ("far.relayvm=alone", "alone", "alone is in use by far (relayvm)"),
        ("dom0.default_dispvm=work", "work", "work is in use by dom0 (default_dispvm)"),
        ("debian.management_dispvm=work", "work", "work is in use by debian (management_dispvm)"),
        ("clockvm=alone updatevm=alone", "alone", "by global property clockvm, global property updatevm"),
        ("default_guivm=alone", "alone", "alone is in use by global property default_guivm"),
        ("default_audiovm=alone", "alone", "alone is in use by global property default_audiovm"),
        ("default_template=debian", "debian", "dvm (template), global property default_template"),
        ("default_dispvm=work", "work", "work is in use by global property default_dispvm"),
        ("management_dispvm=work", "work", "work is in use by global property management_dispvm"),
    ],
)
def test_a_vm_that_something_refers_to_stays(registry: Registry, before: str, name: str, words: str) -> None:
    do(registry, "work.template_for_dispvms=True")
    do(registry, before)
    refuse(registry, lambda registry: registry.remove(find(registry, name)), InUseError, words)


def test_a_vm_that_others_have_devices_of_stays(registry: Registry) -> None:
    find(registry, "work").devices = (device_of("alone"),)
    words = "alone is in use by work (device)"
    refuse(registry, lambda registry: registry.remove(find(registry, "alone")), InUseError, words)


def test_dom0_stays(registry: Registry) -> None:
    refuse(registry, lambda registry: registry.remove(registry.dom0), InUseError, "dom0 cannot be removed")


def test_a_vm_that_refers_only_to_itself_may_go(registry: Registry) -> None:
    do(registry, "work.template_for_dispvms=True work.default_dispvm=work work.netvm=net")
    work = find(registry, "work")
    work.devices = (device_of("work"),)
    registry.remove(work)
    assert "work" not in [vm.name for vm in registry]
    registry.remove(find(registry, "net"))


NAMES = [
    ("", "it must start with a letter"),
    ("1st", "it must start with a letter"),
    ("_x", "it must start with a letter"),
    ("a b", "hold only letters, digits, '_', '.' and '-'"),
    ("a/b", "hold only letters"),
    ("caf\u00e9", "hold only letters"),
    ("x" * 32, "it is longer than 31 characters"),
    ("win-dm", "belong to device models"),
    *((name, "it is reserved") for name in RESERVED),
]


@pytest.mark.parametrize(("name", "reason"), NAMES)
def test_names_that_no_vm_can_have(registry: Registry, name: str, reason: str) -> None:
    words = f"'{name}' cannot be the name of a VM"
    work = find(registry, "work")
    for act in (
        lambda registry: registry.rename(work, name),
        lambda registry: work.set("name", name),
        lambda registry: registry.draft("StandaloneVM", name, "x", None),
        lambda registry: registry.draft_clone(work, name, "x"),
    ):
        refuse(registry, act, ValueRefusedError, words, reason)


@pytest.mark.parametrize("name", ["debian", "work", "far"])
def test_a_name_belongs_to_one_vm(registry: Registry, name: str) -> None:
    refuse(registry, lambda registry: registry.rename(find(registry, "work"), name), VMExistsError, f"called '{name}'")


@pytest.mark.parametrize("name", ["x", "x" * 31, "sys-net.2_b", "dom0x", "nonesuch", "x-dm2"])
def test_names_that_a_vm_can_have(registry: Registry, name: str) -> None:
    registry.rename(find(registry, "work"), name)
    assert registry.find_vm(name).name == name


def test_a_renamed_vm_is_the_same_for_all_that_refer_to_it(registry: Registry) -> None:
    do(registry, "work.netvm=net default_netvm=net fw.guivm=net")
    work, net = find(registry, "work"), find(registry, "net")
    other = Assignment("block", (("id", "sdb"), ("backend-domain", "alone")))
    work.devices = (device_of("net"), other)
    order = [vm.name for vm in registry]
    registry.rename(net, "sys-net")
    assert [vm.name for vm in registry] == ["sys-net" if name == "net" else name for name in order]
    assert work.netvm is net is registry.get("default_netvm") is find(registry, "fw").get("guivm")
    assert work.describe("netvm") == "default=False type=vm sys-net"
    assert work.devices == (device_of("sys-net"), other)
    assert registry.users_of(net) == [("work", "netvm"), ("fw", "guivm"), ("work", "device"), ("", "default_netvm")]


@pytest.mark.parametrize(("name", "classes"), [("work", ("TemplateVM", "StandaloneVM")), ("disp", ("AppVM",))])
def test_what_a_file_may_say_of_a_template(registry: Registry, name: str, classes: tuple[str, ...]) -> None:
    """Whether the modes fit, and whether disposables are allowed, is asked when it matters."""
    vm = find(registry, name)
    for other in [*registry, None]:
        if other is not None and other.klass in classes:
            rules.template_class(vm, other)
        else:
            with pytest.raises(ValueRefusedError, match=f"^{name}: "):
                rules.template_class(vm, other)


def test_only_what_has_a_mode_can_be_started(registry: Registry) -> None:
    bootable = {vm.name for vm in registry if rules.is_bootable(vm)}
    assert (
        bootable == {vm.name for vm in registry if isinstance(vm, LocalVM)} == {*map(str, registry)} - {"dom0", "far"}
    )
