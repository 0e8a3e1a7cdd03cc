"""Where the layers of a VM are, whose stay from start to start, and what the guest and the user are told (B1, B2)."""

from dataclasses import replace

import pytest

from crannog.core.drives import Drive, DriveFile, DriveKind, FileKind
from crannog.core.kernels import KernelFiles
from crannog.core.layers import has_second_layer, in_session, keeps_layer, ready_volumes, used_volumes
from crannog.core.plan import CreatePaused, PrepareVolume
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from crannog.core.volumes import LayerState, Volume
from tests.fakes import Disk, HostCapabilities, add_vm, halted_facts, new_registry, template_and_app

LAYERED = KernelFiles("/k/vmlinuz", "/k/initramfs", "/k/modules.img", has_layers=True)
SINGLE = replace(LAYERED, has_layers=False)
QEMU = HostCapabilities("tcg", has_hvm=True, emulator="/qemu")
XEN = HostCapabilities("xen", has_hvm=True, emulator="/qemu", kind="xen", loader="/hvmloader")


def app_in_debug(mode: str) -> LocalVM:
    _, app = template_and_app(new_registry(), mode)
    app.set("debug", True)
    return app


@pytest.mark.parametrize(("mode", "stays"), [("hvm", True), ("pv", False), ("pvh", False)])
def test_only_one_layer_is_kept_and_only_in_debug_mode(mode: str, stays: bool) -> None:
    app = app_in_debug(mode)
    assert keeps_layer(app, app.volumes["root"]) is stays
    assert not keeps_layer(app, app.volumes["private"])
    app.set("debug", False)
    assert not in_session(app, app.volumes["root"]).keeps_layer


def test_a_template_has_no_layer_to_keep() -> None:
    template, _ = template_and_app(new_registry(), "hvm")
    template.set("debug", True)
    assert not any(keeps_layer(template, volume) for volume in template.volumes.values())


def test_a_disposable_keeps_nothing() -> None:
    registry = new_registry()
    _, app = template_and_app(registry, "hvm")
    app.set("template_for_dispvms", True)
    disposable = add_vm(registry, "DispVM", "disp1", app)
    disposable.set("debug", True)
    assert not any(keeps_layer(disposable, volume) for volume in disposable.volumes.values())


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (LayerState.ABSENT, "volume ready (debug mode: a new layer, which is kept)"),
        (LayerState.CURRENT, "volume ready (debug mode: the layer of its last start was kept)"),
        (LayerState.OUTDATED, "volume ready (debug mode: a new layer, as what is below the last one has changed)"),
    ],
)
def test_the_user_is_told_what_became_of_the_layer(state: LayerState, text: str) -> None:
    app = app_in_debug("hvm")
    plan = plan_start(app, StartRequest(), halted_facts(layer_state=lambda _volume: state))
    told = {step.volume.name: step.tell() for step in plan if isinstance(step, PrepareVolume)}
    assert told == {"root": text, "private": "volume ready"}
    app.set("debug", False)
    plan = plan_start(app, StartRequest(), halted_facts())
    assert [step.tell() for step in plan if isinstance(step, PrepareVolume)] == ["volume ready", "volume ready"]


# -- two layers, or one (B1)


def vm_of(klass: str, mode: str) -> LocalVM:
    """Return a VM of some class and mode, with whatever it is made from."""
    registry = new_registry()
    template, app = template_and_app(registry, mode)
    app.set("template_for_dispvms", True)
    if klass == "StandaloneVM":
        return add_vm(registry, klass, "alone", mode=mode)
    return {"TemplateVM": template, "AppVM": app}.get(klass) or add_vm(registry, klass, "disp1", app)


@pytest.mark.parametrize("mode", ["pv", "pvh", "hvm"])
@pytest.mark.parametrize("klass", ["TemplateVM", "StandaloneVM", "AppVM", "DispVM"])
@pytest.mark.parametrize("kernel", [LAYERED, SINGLE, None])
def test_whose_second_layer_is_in_the_guest(klass: str, mode: str, kernel: KernelFiles | None) -> None:
    """Of template-based VMs whose kernel comes from the host with an initramfs that can make one."""
    vm = vm_of(klass, mode)
    has_two = klass in ("AppVM", "DispVM") and mode != "hvm" and kernel is LAYERED
    assert has_second_layer(vm, kernel) is has_two
    rights = {volume.name: volume.rw for volume in ready_volumes(vm, kernel)}
    own = {"root": not has_two, "private": True}
    assert rights == (own if mode == "hvm" else {**own, "volatile": True})


@pytest.mark.parametrize("missing", ["volatile", "root"])
def test_a_vm_of_a_store_without_the_volume_has_one_layer(missing: str) -> None:
    app = vm_of("AppVM", "pvh")
    del app.volumes[missing]
    assert not has_second_layer(app, LAYERED)
    assert all(volume.rw for volume in ready_volumes(app, LAYERED))


def test_a_root_that_was_made_read_only_stays_so() -> None:
    app = vm_of("AppVM", "hvm")
    app.volumes["root"] = replace(app.volumes["root"], rw=False)
    assert [volume.rw for volume in ready_volumes(app)] == [False, True]


def test_the_layers_of_a_disposable() -> None:
    """Its private is a layer over that of the AppVM, on the host, in any mode."""
    vm = vm_of("DispVM", "pvh")
    dvm = vm.template
    assert dvm is not None
    assert dvm.template is not None
    root, private, volatile = ready_volumes(vm, LAYERED)
    assert (root.source, root.rw) == (dvm.template.volumes["root"].vid, False)
    assert (private.source, private.rw, private.snap_on_start) == (dvm.volumes["private"].vid, True, True)
    assert (volatile.source, volatile.is_volatile, volatile.vid) == ("", True, f"disp1-{vm.uuid[:8]}/volatile")


def test_no_layer_of_two_is_kept_in_debug_mode() -> None:
    ready = ready_volumes(app_in_debug("pvh"), LAYERED)
    assert [volume.keeps_layer for volume in ready] == [False, False, False]
    assert [volume.keeps_layer for volume in ready_volumes(app_in_debug("hvm"))] == [True, False]


def test_volumes_are_used_in_their_order_whatever_that_of_the_file() -> None:
    app = vm_of("AppVM", "pvh")
    odd = replace(app.volumes["private"], name="odd")
    app.volumes = {"odd": odd, **dict(reversed(app.volumes.items()))}
    assert [volume.name for volume in used_volumes(app)] == ["root", "private", "volatile", "odd"]


def test_the_kernels_volume_is_in_no_pool_whatever_the_file_says_of_it() -> None:
    app = vm_of("AppVM", "pvh")
    for kernel in (
        Volume("kernel", "vm-pool", "x/kernel", 1, save_on_stop=True),
        Volume("kernel", "linux-kernel", "", 0),
    ):
        app.volumes["kernel"] = kernel
        assert "kernel" not in [volume.name for volume in used_volumes(app)]
        assert "kernel" not in [volume.name for volume in app.pool_volumes()]


# -- what the guest is given, and told


@pytest.mark.parametrize(("host", "prefix"), [(QEMU, "vd"), (XEN, "xvd")])
@pytest.mark.parametrize(
    ("missing", "kernel", "disks", "volatile", "modules"),
    [
        ([], LAYERED, ["-root", "private", "volatile", "-modules.img"], "c", "d"),
        (["private"], LAYERED, ["-root", "volatile", "-modules.img"], "b", "c"),
        (["volatile"], LAYERED, ["root", "private", "-modules.img"], "", "c"),
        (["kernel"], LAYERED, ["-root", "private", "volatile"], "c", ""),
        (["volatile", "kernel"], LAYERED, ["root", "private"], "", ""),
        ([], replace(LAYERED, modules=""), ["-root", "private", "volatile"], "c", ""),
        ([], SINGLE, ["root", "private", "volatile", "-modules.img"], "", ""),
        ([], replace(SINGLE, modules=""), ["root", "private", "volatile"], "", ""),
    ],
)
def test_disks_and_the_words_about_them(
    host: HostCapabilities, prefix: str, missing: list[str], kernel: KernelFiles, disks: list[str], volatile: str,
    modules: str,
) -> None:  # fmt: skip
    """A minus stands for read-only. Each word names the disk that it is about, whichever are there."""
    app = vm_of("AppVM", "pvh")
    for name in missing:
        del app.volumes[name]
    facts = halted_facts(capabilities=host, kernel_files=lambda _name: kernel, drive_file=image)
    request = StartRequest(drive=Drive(DriveKind.HD, "/srv/i"))
    spec = next(step.spec for step in plan_start(app, request, facts) if isinstance(step, CreatePaused))
    assert [("-" if disk.is_readonly else "") + disk.path.rpartition("/")[2] for disk in spec.disks] == [*disks, "i"]
    assert [disk.target for disk in spec.disks] == [prefix + letter for letter in "abcde"[: len(disks) + 1]]
    told = {"volatile": volatile, "modules": modules}
    expected = [f"crannog.{name}=/dev/{prefix}{letter}" for name, letter in told.items() if letter]
    words = spec.kernelopts.split()
    assert [word for word in words if word.startswith(("crannog.volatile=", "crannog.modules="))] == expected


def image(path: str) -> DriveFile:
    return DriveFile(path, FileKind.FILE)


def test_the_image_of_modules_is_raw_whatever_is_in_it() -> None:
    facts = halted_facts(kernel_files=lambda _name: LAYERED)
    plan = plan_start(vm_of("AppVM", "pvh"), StartRequest(), facts)
    spec = next(step.spec for step in plan if isinstance(step, CreatePaused))
    assert spec.disks[-1] == Disk("/k/modules.img", "vdd", "virtio", "raw", is_readonly=True)


def test_a_vm_that_boots_by_itself_gets_neither_modules_nor_a_volatile_disk() -> None:
    plan = plan_start(vm_of("AppVM", "hvm"), StartRequest(), halted_facts(kernel_files=lambda _name: LAYERED))
    prepared = [step.volume.name for step in plan if isinstance(step, PrepareVolume)]
    spec = next(step.spec for step in plan if isinstance(step, CreatePaused))
    assert (prepared, len(spec.disks), spec.kernelopts) == (["root", "private"], 2, "")
