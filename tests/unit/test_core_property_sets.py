"""The property set of each class as the Admin API lists it (section 6, "Property sets"), and what each is unset."""

from itertools import pairwise

import pytest

from crannog.core.devices import Assignment
from crannog.core.kinds import BOOL, STR
from crannog.core.properties import Holder
from crannog.core.registry import Registry
from crannog.core.runtime import HostFacts
from crannog.core.vms import ADMIN_UUID, CLASSES, LocalVM, QubeBase
from crannog.errors import CrannogError, ValueRefusedError
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app

TYPES = {"b": "bool", "i": "int", "s": "str", "v": "vm", "l": "label"}
PCI = Assignment("pci", (("backend-domain", "dom0"), ("id", "00_1f.3")))

# As the specification lists them, in its order. Deliberately otherwise: `vcpus` of dom0 is ours, and `qid` and `uuid`
# are read-only here, because nothing changes them after a VM's creation.
ALL = "icon s ro, include_in_backups b, klass s ro, label l, name s, qid i ro, uuid s ro"
GLOBAL = """
    check_updates_vm b, clockvm v, default_audiovm v, default_dispvm v, default_guivm v, default_kernel s,
    default_netvm v, default_pool s, default_pool_kernel s, default_pool_private s, default_pool_root s,
    default_pool_volatile s, default_qrexec_timeout i, default_shutdown_timeout i, default_template v,
    management_dispvm v, maxmem i ro, no_cpus i ro, stats_interval i, updatevm v"""
ADMIN = """
    devices_denied s, icon s ro, include_in_backups b, keyboard_layout s, klass s ro, label l, maxmem i ro, name s ro,
    qid i ro, updateable b ro, uuid s ro, vcpus i ro"""
COMMON = f"""{ALL},
    autostart b, backup_timestamp i, debug b, default_user s, devices_denied s, dns s ro, gateway s ro, gateway6 s ro,
    installed_by_rpm b, ip s, ip6 s, kernel s, keyboard_layout s, mac s, maxmem i, memory i, provides_network b,
    qrexec_timeout i, shutdown_timeout i, start_time s ro, stubdom_mem i, stubdom_uuid s ro, stubdom_xid i ro,
    updateable b ro, vcpus i, virt_mode s, visible_gateway s ro, visible_gateway6 s ro, visible_ip s ro,
    visible_ip6 s ro, visible_netmask s ro, xid i ro"""
COMMON_REFERENCES = "audiovm v, bootmode s, default_dispvm v, guivm v, kernelopts s, management_dispvm v, netvm v"
SETS = {
    "global": (GLOBAL, ""),
    "AdminVM": (ADMIN, "default_dispvm v"),
    "TemplateVM": (f"{COMMON}, appvm_default_bootmode s", COMMON_REFERENCES),
    "StandaloneVM": (COMMON, COMMON_REFERENCES),
    "AppVM": (f"{COMMON}, template_for_dispvms b", f"{COMMON_REFERENCES}, template v"),
    "DispVM": (f"{COMMON}, auto_cleanup b, dispid i, is_preload b ro", f"{COMMON_REFERENCES}, template v"),
    "RemoteVM": (f"{ALL}, remote_name s, transport_rpc s", "relayvm v"),
}
"""Of each class what stands alone, and what is loaded after the VMs that it refers to."""

COMMON_DEFAULTS = {
    "autostart": "False", "backup_timestamp": "", "debug": "False", "default_user": "user", "devices_denied": "",
    "dns": "", "gateway": "", "gateway6": "", "include_in_backups": "True", "installed_by_rpm": "False", "ip": "",
    "ip6": "", "kernel": KERNEL, "keyboard_layout": "us++", "label": "red", "mac": "00:16:3e:5e:6c:00",
    "maxmem": "4000", "memory": "400", "provides_network": "False", "qrexec_timeout": "60", "shutdown_timeout": "60",
    "start_time": "", "stubdom_mem": "", "stubdom_uuid": "", "stubdom_xid": "-1", "vcpus": "2", "virt_mode": "pvh",
    "visible_gateway": "", "visible_gateway6": "", "visible_ip": "", "visible_ip6": "", "visible_netmask": "",
    "xid": "-1", "audiovm": "dom0", "bootmode": "default", "default_dispvm": "", "guivm": "dom0",
    "kernelopts": "", "management_dispvm": "", "netvm": "",
}  # fmt: skip
DEFAULTS = {
    "global": {
        "check_updates_vm": "True", "clockvm": "", "default_audiovm": "dom0", "default_dispvm": "",
        "default_guivm": "dom0", "default_kernel": KERNEL, "default_netvm": "", "default_pool": "vm-pool",
        "default_pool_kernel": "linux-kernel", "default_pool_private": "vm-pool", "default_pool_root": "vm-pool",
        "default_pool_volatile": "vm-pool", "default_qrexec_timeout": "60", "default_shutdown_timeout": "60",
        "default_template": "", "management_dispvm": "", "maxmem": "0", "no_cpus": "0", "stats_interval": "3",
        "updatevm": "",
    },
    "AdminVM": {
        "devices_denied": "", "icon": "adminvm-black", "include_in_backups": "True", "keyboard_layout": "us++",
        "label": "black", "maxmem": "0", "name": "dom0", "qid": "0", "updateable": "True", "uuid": ADMIN_UUID,
        "vcpus": "0", "default_dispvm": "",
    },
    "TemplateVM": COMMON_DEFAULTS | {
        "name": "debian", "qid": "1", "icon": "templatevm-red", "updateable": "True",
        "appvm_default_bootmode": "default",
    },
    "StandaloneVM": COMMON_DEFAULTS | {
        "name": "alone", "qid": "3", "icon": "standalonevm-red", "updateable": "True",
    },
    "AppVM": COMMON_DEFAULTS | {
        "name": "work", "qid": "2", "icon": "appvm-red", "updateable": "False", "template": "debian",
        "template_for_dispvms": "True",
    },
    "DispVM": COMMON_DEFAULTS | {
        "name": "disp1", "qid": "4", "icon": "dispvm-red", "updateable": "False", "template": "work", "dispid": "1",
        "mac": "00:16:3e:5e:80:01",
        "auto_cleanup": "False", "is_preload": "False", "default_dispvm": "work",
    },
    "RemoteVM": {
        "name": "far", "qid": "5", "icon": "remotevm-red", "include_in_backups": "True", "label": "red",
        "remote_name": "", "transport_rpc": "", "relayvm": "",
    },
}  # fmt: skip
OWN = {
    "global": {"default_kernel"},
    "AdminVM": {"name", "uuid", "qid"},
    "TemplateVM": {"name", "uuid", "qid", "label", "virt_mode"},
    "StandaloneVM": {"name", "uuid", "qid", "label"},
    "RemoteVM": {"name", "uuid", "qid", "label"},
    "AppVM": {"name", "uuid", "qid", "label", "template", "template_for_dispvms"},
    "DispVM": {"name", "uuid", "qid", "label", "template", "dispid"},
}
"""What a VM has from its creation on, and what `one_of_each` sets; all the rest is default."""


def read_table(text: str) -> dict[str, tuple[str, bool]]:
    """Return type and whether it is read-only, by name, sorted as lists are."""
    words = sorted(entry.split() for entry in text.split(",") if entry.strip())
    return {name: (TYPES[kind], bool(readonly)) for name, kind, *readonly in words}


def expected_set(key: str) -> dict[str, tuple[str, bool]]:
    settings, references = SETS[key]
    return read_table(settings) | read_table(references)


def one_of_each() -> dict[str, Holder]:
    """Return a registry, and a VM of each class in it."""
    registry = new_registry()
    template, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    vms: list[QubeBase] = [registry.dom0, template, app]
    vms += [add_vm(registry, "StandaloneVM", "alone"), add_vm(registry, "DispVM", "disp1", app)]
    vms.append(registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None))
    return {"global": registry, **{vm.klass: vm for vm in vms}}


def test_there_is_a_table_for_every_class() -> None:
    assert set(SETS) == {"global", *CLASSES} == set(DEFAULTS) == set(OWN)


@pytest.mark.parametrize("key", SETS)
def test_names_types_and_what_is_read_only(key: str) -> None:
    declared = one_of_each()[key].declared()
    assert {name: (p.kind.name, p.is_readonly) for name, p in declared.items()} == expected_set(key)


@pytest.mark.parametrize("key", SETS)
def test_they_are_listed_by_load_stage_and_then_by_name(key: str) -> None:
    holder = one_of_each()[key]
    assert list(holder.declared()) == list(expected_set(key)) == [name for name, _ in holder.describe_all()]


@pytest.mark.parametrize("key", SETS)
def test_what_a_fresh_one_shows(key: str) -> None:
    """The whole line of each; what is unset ends in a blank."""
    holder, expected = one_of_each()[key], DEFAULTS[key]
    if isinstance(holder, QubeBase):
        expected = {"klass": key, "uuid": holder.uuid, **expected}
    types = expected_set(key)
    lines = {n: f"default={n not in OWN[key]} type={types[n][0]} {text}" for n, text in expected.items()}
    assert dict(holder.describe_all()) == lines
    assert {name: holder.describe(name) for name in lines} == lines


@pytest.mark.parametrize("key", SETS)
def test_what_is_read_only_refuses_any_value_and_a_reset(key: str) -> None:
    holder = one_of_each()[key]
    readonly = [name for name, (_, is_readonly) in expected_set(key).items() if is_readonly]
    before = holder.state()
    for name in readonly:
        with pytest.raises(ValueRefusedError, match=f"property '{name}' of {holder.title()} is read-only"):
            holder.set(name, holder.get(name))
        with pytest.raises(ValueRefusedError, match=f"property '{name}' of {holder.title()} has no default"):
            holder.reset(name)
    assert holder.state() == before
    assert len(readonly) >= 2


def test_a_dispid_is_given_once() -> None:
    vm = one_of_each()["DispVM"]
    with pytest.raises(ValueRefusedError, match="'dispid' of disp1 was set once and stays as it is"):
        vm.set("dispid", 2)
    with pytest.raises(ValueRefusedError):
        vm.reset("dispid")
    assert vm.get("dispid") == 1
    del vm.values["dispid"]
    with pytest.raises(ValueRefusedError, match="out of range: 0 to 9999"):
        vm.set("dispid", 10000)
    vm.set("dispid", 9999)
    assert vm.get("dispid") == 9999


@pytest.mark.parametrize("key", SETS)
def test_every_text_is_printable_ascii_of_a_bounded_length(key: str) -> None:
    for name, declared in one_of_each()[key].declared().items():
        if declared.kind is STR:
            for text in ("caf\u00e9", "a\nb", "a\0", "\x7f", "\x1b[2J", "\t"):
                with pytest.raises(ValueRefusedError, match="printable ASCII"):
                    declared.kind.parse(text)
            with pytest.raises(ValueRefusedError, match="65537 characters long; at most 65536"):
                declared.kind.parse("x" * 65537)
            assert declared.kind.parse("x" * 65536), name


@pytest.mark.parametrize("key", SETS)
def test_every_bool_takes_the_words_of_the_api(key: str) -> None:
    registry = one_of_each()["global"]
    assert isinstance(registry, Registry)
    for declared in one_of_each()[key].declared().values():
        if declared.kind is BOOL:
            for texts, value in ((("1", "yes", "TRUE", "On"), True), (("0", "No", "false", "OFF"), False)):
                assert {declared.kind.parse(text, registry) for text in texts} == {value}
            with pytest.raises(ValueRefusedError, match="'maybe' is neither True nor False"):
                declared.kind.parse("maybe")


def text_of(vm: Holder, name: str) -> str:
    return vm.declared()[name].kind.format(vm.get(name))


FROM_TEMPLATE = [
    ("bootmode", "appvm_default_bootmode", "rescue"),
    ("default_user", "default_user", "anna"),
    ("kernel", "kernel", "6.6"),
    ("kernelopts", "kernelopts", "quiet"),
    ("maxmem", "maxmem", 5000),
    ("memory", "memory", 800),
    ("qrexec_timeout", "qrexec_timeout", 5),
    ("shutdown_timeout", "shutdown_timeout", 6),
    ("vcpus", "vcpus", 7),
    ("virt_mode", "virt_mode", "pv"),
]


@pytest.mark.parametrize(("name", "source", "value"), FROM_TEMPLATE)
def test_what_an_appvm_has_from_its_template(name: str, source: str, value: object) -> None:
    template, app = template_and_app(new_registry())
    app.registry.kernels.add("6.6")
    before = app.get(name)
    template.set(source, value)
    assert before != value == app.get(name)
    assert app.describe(name) == f"default=True type={app.declared()[name].kind.name} {value}"
    template.reset(source)
    assert app.get(name) == before


def test_the_management_template_comes_from_the_template_first_then_from_the_global_one() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    first, second = (add_vm(registry, "AppVM", name, template) for name in ("first", "second"))
    for vm in (first, second):
        vm.set("template_for_dispvms", value=True)
    registry.set("management_dispvm", first)
    assert app.get("management_dispvm") is template.get("management_dispvm") is first
    template.set("management_dispvm", second)
    assert app.get("management_dispvm") is second
    app.set("management_dispvm", None)
    assert app.get("management_dispvm") is None


def test_everything_that_an_appvm_could_inherit_is_in_the_table() -> None:
    """Whatever else the template says, the AppVM's value is its own."""
    template, app = template_and_app(new_registry())
    shared = [p for name, p in app.declared().items() if name in template.declared() and not p.is_readonly]
    inherited = {name for name, source, _ in FROM_TEMPLATE if name == source} | {"management_dispvm"}
    others = {"int": 123456, "str": "other", "vm": template, "label": template.registry.labels["blue"]}
    for name, kind in [(p.name, p.kind) for p in shared if p.name not in ("name", "virt_mode", "kernel")]:
        before, of_template = text_of(app, name), template.state()
        template.values[name] = not template.get(name) if kind is BOOL else others[kind.name]
        is_inherited = text_of(app, name) != before
        template.restore(of_template)
        assert is_inherited is (name in inherited), name


GLOBAL_DEFAULTS = {
    "audiovm": "default_audiovm", "default_dispvm": "default_dispvm", "guivm": "default_guivm",
    "kernel": "default_kernel", "management_dispvm": "management_dispvm", "netvm": "default_netvm",
    "qrexec_timeout": "default_qrexec_timeout", "shutdown_timeout": "default_shutdown_timeout",
}  # fmt: skip


@pytest.mark.parametrize(("name", "source"), GLOBAL_DEFAULTS.items())
def test_what_a_vm_has_from_a_global_property(name: str, source: str) -> None:
    holders = one_of_each()
    registry, alone, template, dom0 = (holders[key] for key in ("global", "StandaloneVM", "TemplateVM", "AdminVM"))
    value: object = template if registry.declared()[source].kind.is_reference else "other"
    registry.values[source] = value
    assert alone.get(name) is value
    # Templates have no network of their own accord, and who serves all others is served by dom0.
    assert template.get(name) is {"netvm": None, "guivm": dom0, "audiovm": dom0}.get(name, value)
    assert alone.is_default(name)


def test_dom0_has_the_global_template_for_disposables() -> None:
    holders = one_of_each()
    holders["global"].set("default_dispvm", holders["AppVM"])
    assert holders["AdminVM"].get("default_dispvm") is holders["AppVM"]


def test_pools_of_volumes_follow_the_default_pool_but_that_of_kernels() -> None:
    registry = new_registry()
    registry.values["default_pool"] = "other"
    names = ("private", "root", "volatile", "kernel")
    assert [registry.get(f"default_pool_{name}") for name in names] == ["other", "other", "other", "linux-kernel"]


def test_the_hosts_figures_are_global_properties() -> None:
    registry = new_registry()
    registry.host = HostFacts(memory=16000, processors=8)
    assert (registry.get("maxmem"), registry.get("no_cpus")) == (16000, 8)


class Unasked(HostFacts):
    """A host that must not be asked."""

    def __getattribute__(self, name: str) -> object:
        if name in ("memory", "processors"):
            raise AssertionError(f"the host was asked for its {name}")
        return super().__getattribute__(name)


def test_dom0_never_asks_the_host() -> None:
    """B5, also when the host's memory is known."""
    registry = new_registry()
    for host in (HostFacts(16000, 8), Unasked()):
        registry.host = host
        assert (registry.dom0.get("maxmem"), registry.dom0.get("vcpus")) == (0, 0)
        assert "default=True type=int 0" in dict(registry.dom0.describe_all()).values()


def test_an_hvm_without_balancing_never_asks_the_host() -> None:
    """B5: decided before any default is derived from the host's memory."""
    vm = add_vm(new_registry(), "StandaloneVM", "win", mode="hvm")
    vm.registry.host = Unasked()
    vm.set("memory", 2048)
    assert vm.get("maxmem") == 2048
    vm.features["service.meminfo-writer"] = "1"
    with pytest.raises(AssertionError, match="asked for its memory"):
        vm.get("maxmem")


ON, OFF, LINUX = {"service.meminfo-writer": "1"}, {"service.meminfo-writer": ""}, {"os": "Linux"}


@pytest.mark.parametrize(
    ("mode", "host", "memory", "features", "maxmem"),
    [
        ("pvh", 0, 400, {}, 4000),
        ("pv", 0, 400, {}, 4000),
        ("pvh", 16000, 400, {}, 4000),
        ("pvh", 6000, 400, {}, 3000),
        ("pvh", 1000, 800, {}, 800),
        ("pvh", 16000, 5000, {}, 5000),
        ("pvh", 16000, 300, LINUX, 3000),
        ("pvh", 16000, 700, LINUX, 7000),
        ("pvh", 16000, 1000, LINUX, 8000),
        ("pvh", 0, 1000, LINUX, 10000),
        ("pvh", 0, 2**21, LINUX, 2**24),
        ("pvh", 0, 2**24, LINUX, 2**24),
        ("pvh", 2**26, 2**21, LINUX, 2**24),
        ("pvh", 2**26, 2**24, {}, 2**24),
        ("pvh", 16000, 300, {"os": "Windows"}, 4000),
        ("pvh", 16000, 500, OFF, 500),
        ("pvh", 16000, 500, OFF | LINUX, 500),
        ("pvh", 16000, 500, ON, 4000),
        ("hvm", 16000, 500, {}, 500),
        ("hvm", 16000, 500, LINUX, 500),
        ("hvm", 16000, 500, OFF, 500),
        ("hvm", 16000, 500, ON, 4000),
        ("hvm", 16000, 500, ON | LINUX, 5000),
    ],
)
def test_the_most_memory(mode: str, host: int, memory: int, features: dict[str, str], maxmem: int) -> None:
    """B5. The features count as well when they are the template's."""
    registry = new_registry()
    registry.host = HostFacts(host, 4)
    template, app = template_and_app(registry, mode)
    template.features.update(features)
    for vm in (template, app):
        vm.set("memory", memory)
        assert vm.get("maxmem") == maxmem


def test_the_templates_own_maxmem_is_never_below_the_memory_of_its_vm() -> None:
    template, app = template_and_app(new_registry())
    template.set("maxmem", 500)
    assert app.get("maxmem") == 500
    app.set("memory", 800)
    assert (app.get("maxmem"), template.get("maxmem")) == (800, 500)
    template.set("maxmem", 0)
    assert app.get("maxmem") == 800


def test_a_disposable_can_grow_as_far_as_the_vm_it_is_made_from() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    disposable = add_vm(registry, "DispVM", "disp", app)
    template.set("maxmem", 1800)
    assert (app.get("maxmem"), disposable.get("maxmem")) == (1800, 1800)


def test_the_templates_own_maxmem_counts_for_what_can_grow() -> None:
    template, app = template_and_app(new_registry())
    template.set("maxmem", 2222)
    assert app.get("maxmem") == 2222
    app.features.update(OFF)
    assert app.get("maxmem") == 400
    app.set("maxmem", 3333)
    assert app.get("maxmem") == 3333


def test_pci_devices_take_a_full_machine_that_does_not_grow() -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "net")
    vm.features.update(ON)
    vm.devices = (PCI,)
    assert (vm.get("virt_mode"), vm.get("kernel"), vm.get("maxmem")) == ("hvm", "", vm.get("memory"))
    vm.devices = (Assignment("usb", PCI.attributes),)
    assert (vm.get("virt_mode"), vm.get("kernel"), vm.get("maxmem")) == ("pvh", KERNEL, 4000)


def test_pci_devices_do_not_take_a_vm_away_from_the_mode_of_its_template() -> None:
    template, app = template_and_app(new_registry())
    app.features.update(ON)
    app.devices = (PCI,)
    assert (app.get("virt_mode"), app.get("kernel"), app.get("maxmem")) == ("pvh", KERNEL, app.get("memory"))
    template.devices = (PCI,)
    assert (template.get("virt_mode"), app.get("virt_mode")) == ("pvh", "pvh")
    template.reset("virt_mode")
    assert (template.get("virt_mode"), app.get("virt_mode")) == ("hvm", "hvm")


def test_an_hvm_gets_no_kernel_from_its_template_or_the_host() -> None:
    template, app = template_and_app(new_registry(), "hvm")
    template.set("kernel", KERNEL)
    assert app.get("kernel") == ""
    app.set("kernel", KERNEL)
    assert app.get("kernel") == KERNEL


def test_the_keyboard_layout_is_that_of_the_vm_that_shows_the_windows() -> None:
    registry = new_registry()
    vm, gui = add_vm(registry, "StandaloneVM", "alone"), add_vm(registry, "StandaloneVM", "sys-gui")
    registry.dom0.set("keyboard_layout", "de++")
    assert vm.get("keyboard_layout") == "de++"
    gui.set("keyboard_layout", "fr+oss+compose:rwin")
    vm.set("guivm", gui)
    assert vm.get("keyboard_layout") == "fr+oss+compose:rwin"
    vm.set("guivm", None)
    assert vm.get("keyboard_layout") == "us++"


def test_the_keyboard_layout_comes_over_any_steps() -> None:
    registry = new_registry()
    vms = [add_vm(registry, "StandaloneVM", f"hop{number}") for number in range(50)]
    for vm, shower in pairwise(vms):
        vm.set("guivm", shower)
    registry.dom0.set("keyboard_layout", "de++")
    assert {vm.get("keyboard_layout") for vm in vms} == {"de++"}
    vms[30].set("keyboard_layout", "fr++")
    assert [vm.get("keyboard_layout") for vm in vms] == ["fr++"] * 31 + ["de++"] * 19
    vms[20].set("guivm", None)
    assert [vms[number].get("keyboard_layout") for number in (0, 20, 21)] == ["us++", "us++", "fr++"]


def test_a_loop_of_showers_ends() -> None:
    """The rules make none; should a file bring one in, the layout is found all the same."""
    registry = new_registry()
    one, two, three = (add_vm(registry, "StandaloneVM", name) for name in ("one", "two", "three"))
    one.values["guivm"], two.values["guivm"], three.values["guivm"] = two, one, one
    assert [vm.get("keyboard_layout") for vm in (one, two, three)] == ["us++"] * 3
    one.values["guivm"] = one
    assert [vm.get("keyboard_layout") for vm in (one, two, three)] == ["us++"] * 3


@pytest.mark.parametrize("name", ["guivm", "audiovm"])
def test_a_vm_that_serves_all_others_is_served_by_dom0_unless_set_otherwise(name: str) -> None:
    registry = new_registry()
    server, other = add_vm(registry, "StandaloneVM", "sys-gui"), add_vm(registry, "StandaloneVM", "other")
    registry.set(f"default_{name}", server)
    assert (server.get(name), other.get(name)) == (registry.dom0, server)
    assert server.describe(name) == "default=True type=vm dom0"
    server.set(name, None)
    assert server.get(name) is None
    server.reset(name)
    registry.set(f"default_{name}", None)
    assert (server.get(name), other.get(name)) == (None, None)
    registry.reset(f"default_{name}")
    assert (server.get(name), other.get(name)) == (registry.dom0, registry.dom0)


def test_the_keyboard_of_the_vm_that_shows_all_windows_is_that_of_dom0() -> None:
    registry = new_registry()
    gui, other = add_vm(registry, "StandaloneVM", "sys-gui"), add_vm(registry, "StandaloneVM", "other")
    registry.set("default_guivm", gui)
    assert (gui.get("keyboard_layout"), other.get("keyboard_layout")) == ("us++", "us++")
    registry.dom0.set("keyboard_layout", "de++")
    assert (gui.get("keyboard_layout"), other.get("keyboard_layout")) == ("de++", "de++")
    gui.set("keyboard_layout", "fr++")
    assert (gui.get("keyboard_layout"), other.get("keyboard_layout")) == ("fr++", "fr++")


def test_a_global_guivm_makes_no_loop() -> None:
    registry = new_registry()
    one, two = add_vm(registry, "StandaloneVM", "one"), add_vm(registry, "StandaloneVM", "two")
    one.set("guivm", two)
    with pytest.raises(CrannogError):
        registry.set("default_guivm", one)
    assert two.get("keyboard_layout") == "us++"


def test_a_vm_that_is_shown_on_another_host_can_be_listed() -> None:
    holders = one_of_each()
    vm = holders["StandaloneVM"]
    vm.set("guivm", holders["RemoteVM"])
    assert dict(vm.describe_all())["keyboard_layout"] == "default=True type=str us++"


@pytest.mark.parametrize("klass", ["AppVM", "DispVM", "StandaloneVM", "TemplateVM", "RemoteVM"])
def test_icons(klass: str) -> None:
    vm = one_of_each()[klass]
    assert isinstance(vm, QubeBase)
    vm.set("label", vm.registry.find_label("green"))
    assert vm.get("icon") == f"{klass.lower()}-green"
    vm.features["servicevm"] = "1"
    prefix = "servicevm" if klass in ("AppVM", "DispVM") else klass.lower()
    assert vm.get("icon") == f"{prefix}-green"
    vm.features["servicevm"] = ""
    assert vm.get("icon") == f"{klass.lower()}-green"


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("ip", "10.0.0.1", "10.0.0.1"),
        ("ip6", "FD00:0:0::00a", "fd00::a"),
        ("mac", "00:16:3E:AA:BB:CC", "00:16:3e:aa:bb:cc"),
        ("default_user", "", ""),
        ("default_user", "Anna.B", "Anna.B"),
        ("keyboard_layout", "cz+qwerty+", "cz+qwerty+"),
        ("devices_denied", "u03****b******", "u03****b******"),
    ],
)
def test_what_is_kept_of_a_text(name: str, text: str, kept: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    vm.set(name, text)
    assert vm.get(name) == kept


@pytest.mark.parametrize(
    ("name", "texts", "reason"),
    [
        ("ip", ("", "10.0.0.256", "10.0.0.1/24", "1", "fd00::a"), "is not an IPv4 address"),
        ("ip6", ("", "10.0.0.1", "fd00::g"), "is not an IPv6 address"),
        ("mac", ("", "00:16:3e:5e:6c", "01:16:3e:5e:6c:00", "00-16-3e-5e-6c-00"), "is not the MAC address"),
        ("default_user", ("-x", "a:b", "a b", "'", "x" * 65), "is not a user name"),
        ("keyboard_layout", ("", "us", "us+", "+a+", "us++a b", "us+++"), "is no keyboard layout"),
        ("devices_denied", ("u", "x03****", "u03***", "u03**** b******"), "is no list of interface codes"),
        ("memory", ("63", "16777217"), "is out of range: 64 to 16777216 MiB"),
        ("stubdom_mem", ("63",), "is out of range: 64 to"),
        ("backup_timestamp", ("-1",), "is out of range: 0 to"),
    ],
)
def test_texts_that_are_refused(name: str, texts: tuple[str, ...], reason: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    before = vm.state()
    for text in texts:
        with pytest.raises(ValueRefusedError, match=reason):
            vm.set(name, vm.declared()[name].kind.parse(text))
    assert vm.state() == before


def test_the_numbers_of_a_running_vm_are_those_of_its_hypervisor() -> None:
    class Runs:
        def power_state(self, uuid: str) -> str:
            return f"Running {uuid}"

        def active_states(self) -> dict[str, str]:
            return {}

        def xid(self, uuid: str) -> int:
            return len(uuid)

        def stubdom_xid(self, uuid: str) -> int:
            return len(uuid) + 1

    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    vm.registry.runtime = Runs()
    assert (vm.get("xid"), vm.power_state) == (36, f"Running {vm.uuid}")
    assert (vm.registry.dom0.power_state, isinstance(vm, LocalVM)) == ("Running", True)
