"""Property types, defaults, inheritance, checks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.kinds import BOOL, INT, LABEL, STR, VM
from crannog.core.registry import Registry
from crannog.core.vms import CLASSES
from crannog.errors import CrannogError, NotFoundError, PropertyNotFoundError, ValueRefusedError, VMNotFoundError
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
TRUE_WORDS, FALSE_WORDS = ("1", "yes", "true", "on"), ("0", "no", "false", "off")


@given(PRINTABLE)
def test_str_round_trip(text: str) -> None:
    assert STR.parse(STR.format(text), Registry()) == text


@given(st.text().filter(lambda text: not text.isascii() or any(ord(c) < 0x20 or ord(c) == 0x7F for c in text)))
def test_str_refuses_what_is_not_printable_ascii(text: str) -> None:
    with pytest.raises(ValueRefusedError, match="printable ASCII"):
        STR.parse(text, Registry())


@given(st.integers(-(10**18), 10**18))
def test_int_round_trip(number: int) -> None:
    assert INT.parse(INT.format(number), Registry()) == number


@pytest.mark.parametrize(
    "text",
    ["", "-", "--1", "+1", " 1", "1 ", "1_0", "0x10", "1.0", "\u0661", "\u00b2", "1e3", "9" * 5000, "nan", "1\n"],
)
def test_int_refuses_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        INT.parse(text, Registry())
    assert len(str(caught.value)) < 100


@given(st.text())
def test_int_raises_nothing_else(text: str) -> None:
    try:
        assert isinstance(INT.parse(text, Registry()), int)
    except ValueRefusedError:
        assert text.strip() != "0"


@given(st.sampled_from(TRUE_WORDS + FALSE_WORDS), st.data())
def test_bool_in_any_case(word: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.sampled_from((c.lower(), c.upper()))) for c in word)
    value = BOOL.parse(text, Registry())
    assert value is (word in TRUE_WORDS)
    assert BOOL.format(value) in ("True", "False")
    assert BOOL.parse(BOOL.format(value), Registry()) is value


@pytest.mark.parametrize("text", ["", "y", "2", "truE ", "none", "True\n", "\uff4fn", "t" * 1000])
def test_bool_refuses_other_words(text: str) -> None:
    with pytest.raises(ValueRefusedError, match="neither True nor False"):
        BOOL.parse(text, Registry())


@pytest.mark.parametrize("name", [label.name for label in Registry().labels.values()])
def test_label_round_trip(name: str) -> None:
    registry = Registry()
    assert LABEL.format(LABEL.parse(name, registry)) == name


@pytest.mark.parametrize("name", ["", "pink", "Red", "red "])
def test_unknown_labels_are_refused(name: str) -> None:
    with pytest.raises(NotFoundError, match="use one of red, orange"):
        LABEL.parse(name, Registry())


def test_vm_round_trip_by_name_and_uuid() -> None:
    registry = new_registry()
    template, _ = template_and_app(registry)
    assert VM.parse(VM.format(template), registry) is template
    assert VM.parse(f"uuid:{template.uuid}", registry) is template
    assert VM.parse("", registry) is None
    assert VM.format(None) == ""


@pytest.mark.parametrize("name", ["nobody", "Debian", "uuid:", "uuid:debian", "x" * 5000])
def test_unknown_vms_are_refused(name: str) -> None:
    registry = new_registry()
    template_and_app(registry)
    with pytest.raises(VMNotFoundError) as caught:
        VM.parse(name, registry)
    assert len(str(caught.value)) < 200


def test_the_default_counts_until_set_and_after_reset() -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    assert (vm.get("memory"), vm.is_default("memory")) == (400, True)
    vm.set("memory", 800)
    assert (vm.get("memory"), vm.is_default("memory"), vm.default("memory")) == (800, False, 400)
    vm.reset("memory")
    assert (vm.get("memory"), vm.is_default("memory")) == (400, True)
    vm.reset("memory")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", 999),
        ("vcpus", 7),
        ("default_user", "anna"),
        ("kernelopts", "quiet"),
        ("qrexec_timeout", 5),
        ("shutdown_timeout", 6),
        ("virt_mode", "pv"),
    ],
)
def test_an_appvm_inherits_from_its_template(name: str, value: object) -> None:
    template, app = template_and_app(new_registry())
    template.set(name, value)
    assert app.get(name) == value
    assert app.is_default(name)


@pytest.mark.parametrize("name", ["label", "debug", "xid", "include_in_backups"])
def test_what_an_appvm_does_not_inherit(name: str) -> None:
    template, app = template_and_app(new_registry())
    before = app.get(name)
    template.values[name] = "something else"
    assert app.get(name) == before


def test_the_own_value_wins_over_the_template() -> None:
    template, app = template_and_app(new_registry())
    app.set("memory", 500)
    template.set("memory", 999)
    assert app.get("memory") == 500


def test_globals_are_the_default_of_vms_without_a_template() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.set("default_qrexec_timeout", 11)
    assert [vm.get("qrexec_timeout") for vm in (template, app)] == [11, 11]
    assert [vm.get("kernel") for vm in (template, app)] == [KERNEL, KERNEL]


def test_maxmem_follows_memory() -> None:
    """B5: an HVM without memory balancing has maxmem = memory."""
    vm = add_vm(new_registry(), "StandaloneVM", "win", mode="hvm")
    vm.set("memory", 2048)
    assert vm.get("maxmem") == 2048


def test_an_hvm_has_no_kernel_of_the_host() -> None:
    assert add_vm(new_registry(), "StandaloneVM", "win", mode="hvm").get("kernel") == ""


def test_dom0_costs_nothing() -> None:
    """B5."""
    dom0 = new_registry().find_vm("dom0")
    assert (dom0.get("maxmem"), dom0.get("vcpus"), dom0.qid, dom0.klass) == (0, 0, 0, "AdminVM")
    assert dom0.get("icon") == "adminvm-black"
    with pytest.raises(PropertyNotFoundError, match="dom0 has no property 'memory'"):
        dom0.get("memory")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("memory", 63, "64 to"),
        ("memory", 2**24 + 1, "64 to"),
        ("memory", -1, "64 to"),
        ("maxmem", -1, "0 to"),
        ("vcpus", 0, "1 to 255"),
        ("vcpus", 256, "1 to 255"),
        ("qrexec_timeout", 0, "1 to 86400"),
        ("shutdown_timeout", 86401, "1 to 86400"),
        ("virt_mode", "xen", "use one of pv, pvh, hvm"),
        ("virt_mode", "", "use one of pv, pvh, hvm"),
        ("kernel", "5.0", "no kernel '5.0'"),
        ("kernel", "../x", "no kernel"),
    ],
)
def test_values_out_of_range_are_refused_and_change_nothing(name: str, value: object, reason: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    before = vm.get(name)
    with pytest.raises(ValueRefusedError, match=reason):
        vm.set(name, value)
    assert vm.get(name) == before
    assert vm.is_default(name)


@pytest.mark.parametrize("name", ["default_qrexec_timeout", "default_shutdown_timeout"])
@pytest.mark.parametrize("value", [0, -5, 86401])
def test_global_timeouts_have_the_range_of_the_vms_own(name: str, value: int) -> None:
    registry = new_registry()
    with pytest.raises(ValueRefusedError):
        registry.set(name, value)
    assert registry.get(name) == 60


def test_an_unknown_default_kernel_is_refused() -> None:
    registry = new_registry()
    with pytest.raises(ValueRefusedError, match=KERNEL):
        registry.set("default_kernel", "4.0")


@pytest.mark.parametrize("name", ["uuid", "qid", "klass", "icon", "xid", "updateable"])
def test_read_only_properties(name: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    before = vm.get(name)
    with pytest.raises(ValueRefusedError, match=f"'{name}' of alone is read-only"):
        vm.set(name, before)
    with pytest.raises(ValueRefusedError):
        vm.reset(name)
    assert vm.get(name) == before


@pytest.mark.parametrize("name", ["name", "template"])
def test_what_has_no_default_cannot_be_reset(name: str) -> None:
    _, app = template_and_app(new_registry())
    before = app.get(name)
    with pytest.raises(ValueRefusedError, match="no default"):
        app.reset(name)
    assert app.get(name) == before


@pytest.mark.parametrize("name", ["", "nonsense", "values", "__class__", "x" * 1000])
def test_unknown_properties(name: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    for act in (vm.get, vm.default, vm.reset, lambda name: vm.set(name, 1)):
        with pytest.raises(PropertyNotFoundError) as caught:
            act(name)
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("klass", sorted(CLASSES))
def test_every_property_of_a_class_can_be_read_and_shown(klass: str) -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    alone = add_vm(registry, "StandaloneVM", "alone")
    app.set("template_for_dispvms", value=True)
    disposable = add_vm(registry, "DispVM", "disp1", app)
    remote = registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)
    vm = {vm.klass: vm for vm in (registry.find_vm("dom0"), template, app, alone, disposable, remote)}[klass]
    for name, declared in vm.declared().items():
        assert declared.name == name
        assert declared.help.endswith(".")
        text = declared.kind.format(vm.get(name))
        assert text.isascii()
        if vm.get(name) is None and declared.kind is not VM:
            continue  # no value: there is no text for that
        assert declared.kind.format(declared.kind.parse(text, registry)) == text


@pytest.mark.parametrize("name", ["name", "virt_mode", "kernel", "template"])
def test_what_needs_a_halted_vm(name: str) -> None:
    assert CLASSES["AppVM"].declared()[name].needs_halted


@given(st.sampled_from(sorted(CLASSES["AppVM"].declared())), st.text(max_size=40) | st.integers().map(str))
def test_any_text_is_kept_or_refused_and_then_nothing_changes(name: str, text: str) -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    kind, before = app.find_property(name).kind, app.get(name)
    try:
        app.set(name, kind.parse(text, registry))
    except CrannogError:
        assert app.get(name) == before
    else:
        assert app.get(name) == kind.parse(text, registry)
