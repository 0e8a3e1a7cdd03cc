"""Template compatibility, asked of the class (B11, B12)."""

import pytest

from crannog.core.registry import Registry
from crannog.core.templates import can_be_template, may_use_template, origin, template_refusal
from crannog.core.vms import CLASSES, LocalVM, QubeBase
from crannog.errors import ValueRefusedError
from tests.fakes import add_vm, new_registry

MODES = ("pv", "pvh", "hvm")


def make_templates(registry: Registry) -> dict[str, QubeBase]:
    """Return one VM of each class and mode, by `Class-mode`."""
    vms: dict[str, QubeBase] = {"AdminVM": registry.find_vm("dom0")}
    for mode in MODES:
        for klass in ("TemplateVM", "StandaloneVM"):
            vms[f"{klass}-{mode}"] = add_vm(registry, klass, f"{klass}-{mode}", mode=mode)
        vms[f"AppVM-{mode}"] = add_vm(registry, "AppVM", f"AppVM-{mode}", vms[f"TemplateVM-{mode}"])
    return vms


# Class, mode and template of all pairs that may start; every other pair may not.
ALLOWED = {
    ("AppVM", "pv", "TemplateVM-pv"),
    ("AppVM", "pv", "TemplateVM-pvh"),
    ("AppVM", "pvh", "TemplateVM-pv"),
    ("AppVM", "pvh", "TemplateVM-pvh"),
    ("AppVM", "hvm", "TemplateVM-hvm"),
    ("AppVM", "hvm", "StandaloneVM-hvm"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("klass", sorted(CLASSES))
def test_every_class_mode_and_template(klass: str, mode: str) -> None:
    for key, template in make_templates(new_registry()).items():
        allowed = may_use_template(CLASSES[klass], mode, template)
        assert allowed is ((klass, mode, key) in ALLOWED), (klass, mode, key)
        if not allowed:
            assert template_refusal("new", CLASSES[klass], mode, template).startswith("new: ")


@pytest.mark.parametrize("klass", ["AppVM", "StandaloneVM", "TemplateVM"])
def test_creation_agrees_with_the_table(klass: str) -> None:
    registry = new_registry()
    for key, template in make_templates(registry).items():
        mode = str(template.get("virt_mode")) if isinstance(template, LocalVM) else ""
        name = f"new-{key}"
        if (klass, mode, key) in ALLOWED:
            vm = add_vm(registry, klass, name, template)
            assert vm.template is template
            assert vm.get("virt_mode") == mode
        else:
            with pytest.raises(ValueRefusedError, match=name):
                add_vm(registry, klass, name, template)
            assert name not in [vm.name for vm in registry]


@pytest.mark.parametrize(
    ("klass", "key", "reason"),
    [
        ("StandaloneVM", "TemplateVM-pvh", "a StandaloneVM has no template"),
        ("AppVM", "AppVM-pvh", "is of class AppVM and cannot be a template"),
        ("AppVM", "AdminVM", "is of class AdminVM and cannot be a template"),
        ("AppVM", "", "needs a template"),
        ("AppVM", "TemplateVM-hvm", "is made for virt_mode hvm, not pvh"),
        ("AppVM", "StandaloneVM-hvm", "is made for virt_mode hvm, not pvh"),
        ("AppVM", "StandaloneVM-pvh", "is a StandaloneVM of virt_mode pvh; only an HVM can be a template then"),
        ("AppVM", "StandaloneVM-pv", "is a StandaloneVM of virt_mode pv; only an HVM can be a template then"),
        ("DispVM", "AppVM-pv", "is not; allow it with 'qvm-prefs AppVM-pv template_for_dispvms True', or choose anoth"),
        ("DispVM", "TemplateVM-pvh", "which TemplateVM-pvh is not; choose another"),
        ("DispVM", "AdminVM", "which dom0 is not; choose another"),
    ],
)
def test_the_refusal_says_why(klass: str, key: str, reason: str) -> None:
    template = make_templates(new_registry()).get(key)
    assert reason in template_refusal("new", CLASSES[klass], "pvh", template)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_an_appvm_fits_its_template(mode: str) -> None:
    vms = make_templates(new_registry())
    app = vms["AppVM-pvh"]
    if mode == "hvm":
        with pytest.raises(ValueRefusedError, match="made for virt_mode pvh, not hvm"):
            app.set("virt_mode", mode)
        assert app.get("virt_mode") == "pvh"
    else:
        app.set("virt_mode", mode)
        assert app.get("virt_mode") == mode


def test_a_template_is_changed_to_one_that_fits_only() -> None:
    vms = make_templates(new_registry())
    app = vms["AppVM-pvh"]
    for key in ("AppVM-pvh", "AppVM-pv", "StandaloneVM-pvh", "StandaloneVM-pv", "AdminVM"):
        with pytest.raises(ValueRefusedError):
            app.set("template", vms[key])
        assert app.template is vms["TemplateVM-pvh"]
    with pytest.raises(ValueRefusedError, match="needs a template"):
        app.set("template", None)
    app.set("template", vms["TemplateVM-pv"])
    assert app.get("virt_mode") == "pv"


def test_an_appvm_that_inherits_its_mode_may_move_to_a_template_of_another_mode() -> None:
    vms = make_templates(new_registry())
    app = vms["AppVM-pvh"]
    app.set("template", vms["StandaloneVM-hvm"])
    assert app.get("virt_mode") == "hvm"


def test_an_appvm_with_a_mode_of_its_own_may_not() -> None:
    vms = make_templates(new_registry())
    app = vms["AppVM-pvh"]
    app.set("virt_mode", "pv")
    with pytest.raises(ValueRefusedError, match="made for virt_mode hvm, not pv"):
        app.set("template", vms["TemplateVM-hvm"])


def test_a_templates_mode_does_not_change_under_a_user_with_its_own() -> None:
    vms = make_templates(new_registry())
    vms["AppVM-pvh"].set("virt_mode", "pvh")
    with pytest.raises(ValueRefusedError, match="AppVM-pvh"):
        vms["TemplateVM-pvh"].set("virt_mode", "hvm")


def test_an_hvm_that_is_a_template_stays_one() -> None:
    """B12: a StandaloneVM is a template as an HVM only."""
    registry = new_registry()
    alone = add_vm(registry, "StandaloneVM", "win", mode="hvm")
    add_vm(registry, "AppVM", "win-work", alone)
    with pytest.raises(ValueRefusedError, match="win-work"):
        alone.set("virt_mode", "pvh")
    with pytest.raises(ValueRefusedError, match="win-work"):
        alone.reset("virt_mode")
    assert alone.get("virt_mode") == "hvm"


def make_disposable(registry: Registry, mode: str = "pvh") -> tuple[LocalVM, LocalVM, LocalVM]:
    """Return a template, an AppVM that allows disposables, and one of those."""
    template = add_vm(registry, "TemplateVM", "debian", mode=mode)
    app = add_vm(registry, "AppVM", "dvm", template)
    app.set("template_for_dispvms", value=True)
    return template, app, add_vm(registry, "DispVM", "disp", app)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("its_mode", MODES)
def test_a_disposable_starts_from_an_appvm_that_allows_it(mode: str, its_mode: str) -> None:
    template, app, disposable = make_disposable(new_registry(), its_mode)
    cls = CLASSES["DispVM"]
    assert may_use_template(cls, mode, app) is ((mode == "hvm") is (its_mode == "hvm"))
    assert disposable.get("virt_mode") == its_mode
    for other in (template, disposable, template.registry.dom0):
        assert not may_use_template(cls, mode, other)
    disposable.registry.remove(disposable)
    app.set("template_for_dispvms", value=False)
    assert not may_use_template(cls, mode, app)


@pytest.mark.parametrize("klass", sorted(CLASSES))
def test_what_can_be_a_template_at_all_whatever_the_modes(klass: str) -> None:
    registry = new_registry()
    vms = {vm.klass: vm for vm in make_disposable(registry)}
    vms["StandaloneVM"] = add_vm(registry, "StandaloneVM", "alone")
    vms["RemoteVM"] = registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000009", None)  # type: ignore[assignment]
    expected = {"AppVM": {"TemplateVM", "StandaloneVM"}, "DispVM": {"AppVM"}}.get(klass, set())
    assert {key for key, vm in vms.items() if can_be_template(CLASSES[klass], vm)} == expected
    assert not can_be_template(CLASSES[klass], registry.dom0)


@pytest.mark.parametrize("its_mode", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_a_question_about_a_mode_that_the_template_does_not_have_yet(its_mode: str, asked: str) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone", mode=its_mode)
    assert may_use_template(CLASSES["AppVM"], "hvm", alone, asked) is (asked == "hvm")


def test_a_volume_shows_what_the_nearest_owner_holds() -> None:
    template, app, disposable = make_disposable(new_registry())
    owners = {vm.name: [origin(vm, name)[0].name for name in vm.volumes] for vm in (template, app, disposable)}
    assert owners == {
        "debian": ["debian"] * 4, "dvm": ["debian", "dvm", "dvm", "dvm"], "disp": ["debian", "dvm", "disp", "disp"],
    }  # fmt: skip
    assert origin(disposable, "root") == (template, template.volumes["root"])
    assert origin(disposable, "private") == (app, app.volumes["private"])


def test_a_layer_without_anything_below_is_its_own_origin() -> None:
    _, app, _ = make_disposable(new_registry())
    del app.values["template"]
    assert origin(app, "root") == (app, app.volumes["root"])


def test_a_standalone_vm_without_a_boot_loader_is_refused_with_a_reason() -> None:
    """B12: it could be a template as an HVM only."""
    vms = make_templates(new_registry())
    for mode in ("pv", "pvh"):
        with pytest.raises(ValueRefusedError) as caught:
            vms["AppVM-pvh"].set("template", vms[f"StandaloneVM-{mode}"])
        words = f"StandaloneVM-{mode} is a StandaloneVM of virt_mode {mode}; only an HVM can be a template then"
        assert str(caught.value) == f"AppVM-pvh: {words}"
