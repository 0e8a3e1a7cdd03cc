"""qvm-device and its kin: how devices are written in each place, which calls follow, and who is told what is wrong."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import qvm_device
from crannog.cli.options import Command
from crannog.cli.qvm_device_list import describe
from crannog.cli.qvm_device_text import Device, parse_pairs, print_assignment, read_device, read_options
from crannog.errors import CrannogError, DaemonError
from tests.unit.cli_wire import VMS, Tool, assert_examples_are_plain, open_wire

STICK = "0781:5581:4C53::u080650"
BLOCK_ID = "0000:0000::b******"


def device_line(port: str, device_id: str, more: str = "", backend: str = "sys-usb", devclass: str = "block") -> str:
    text = f"device_id='{device_id}' port_id='{port}' devclass='{devclass}' backend_domain='{backend}'"
    return f"{port}:{device_id} {text}{more}\n"


def use_line(port: str, device_id: str, more: str, backend: str = "sys-usb", devclass: str = "block") -> str:
    return f"{backend}+" + device_line(port, device_id, more, backend, devclass)


Make = Callable[..., Tool]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Make]:
    """Return what makes the tool for a class; every VM is without devices, and every change succeeds."""
    with open_wire(monkeypatch) as wire:
        wire.answer("admin.vm.List+ dom0", VMS)

        def build(command: Command = qvm_device.BLOCK, devclass: str = "block") -> Tool:
            for vm in ("dom0", "sys-usb", "work"):
                for what in ("Available", "Assigned", "Attached"):
                    wire.answer(f"admin.vm.device.{devclass or 'block'}.{what}+ {vm}")
            return Tool(wire, command, lambda options: qvm_device.act(command, devclass, options), capsys)

        yield build


@pytest.fixture
def tool(make: Make) -> Tool:
    return make()


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("sys-net:sda:0000:0000::b******", "sys-net+sda+0000+0000++b______"),
        ("sys-net:sda", "sys-net+sda+_"),
        ("sys-net:sda:*", "sys-net+sda+_"),
        ("sys-net:sda:0000:0000::?******", "sys-net+sda+0000+0000++_______"),
        ("sys-net:*:0000:0000::b******", "sys-net+_+0000+0000++b______"),
        ("dom0:00_1f.3", "dom0+00_1f.3+_"),
    ],
)
def test_devices_as_arguments(text: str, argument: str) -> None:
    assert read_device("block", text)[0].argument() == argument


@pytest.mark.parametrize(
    "text",
    ["", "sys-usb", "sys-usb:", ":sda", "sys-usb:sda:", "sys-usb:s a", "sys-usb:sda:a+b", "a/b:sda", "a\0:b", "*:sda",
     "sys-usb:s\u00e4:x", "sys-usb:sda:\udcff"],
)  # fmt: skip
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(CrannogError) as caught:
        read_device("block", text)
    assert caught.value.exit_code == 2


def test_the_text_of_an_assignment() -> None:
    device = Device("block", "sys-usb", "sda")
    assert print_assignment(device, "required", {"ro": "yes"}) == (
        "device_id='*' port_id='sda' devclass='block' backend_domain='sys-usb' mode='required' _ro='yes'"
    )
    assert print_assignment(device, "manual", {"x": "it's ''"}).endswith(r" mode='manual' _x='it\'s \'\''")


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("a='1'", {"a": "1"}),
        ("a='' b=' x=\\'y\\' '", {"a": "", "b": " x='y' "}),
        ("_a-b='\\n'", {"_a-b": "\\n"}),
    ],
)
def test_texts_of_devices(text: str, pairs: dict[str, str]) -> None:
    assert parse_pairs("x", text) == pairs


@pytest.mark.parametrize(
    "text",
    ["a", "a=", "a='", "a='1", "a='1\\'", "='1'", "a='1' ", "a='1'  b='2'", "a='1'b='2'", " a='1'", "a='1' a='2'",
     "a=1 b='2'", "'='1'", "a b='1'", "a='1' b", "\x1b='1'", "a='1'\nb='2'"],
)  # fmt: skip
def test_texts_that_are_none_of_a_device(text: str) -> None:
    with pytest.raises(DaemonError) as caught:
        parse_pairs("x", text)
    assert str(caught.value).isprintable()


@given(st.text() | st.text(alphabet="ab='\\ "))
def test_texts_of_devices_are_read_or_refused(text: str) -> None:
    try:
        pairs = parse_pairs("x", text)
    except DaemonError:
        return
    assert " ".join("{}='{}'".format(key, value.replace("'", "\\'")) for key, value in pairs.items()) == text


@given(st.dictionaries(st.text(alphabet="abc-.", min_size=1), st.text(alphabet="x'= \\-")))
def test_options_come_back_as_they_were(options: dict[str, str]) -> None:
    try:
        taken = read_options(f"{key}={value}" for key, value in options.items())
    except CrannogError:
        assert any("\\" in value for value in options.values())
        return
    text = print_assignment(Device("block", "sys-usb", "sda"), "manual", taken)
    found = parse_pairs("x", text)
    assert {key[1:]: value for key, value in found.items() if key.startswith("_")} == options


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ({}, "unknown device"),
        ({"interfaces": "u080650"}, "Storage"),
        ({"interfaces": "u030101u030000", "product": "Keys"}, "Keyboard, Input: Keys"),
        ({"interfaces": "p0c0330", "vendor": "Intel", "name": "xHCI"}, "USB controller: Intel xHCI"),
        ({"interfaces": "?******", "manufacturer": "M", "product": "P", "serial": "S"}, "M P (S)"),
        ({"interfaces": "u0", "serial": "S"}, "(S)"),
    ],
)
def test_descriptions(pairs: dict[str, str], text: str) -> None:
    assert describe(pairs) == text


def test_the_list(tool: Tool) -> None:
    wire = tool.wire
    stick = device_line("sda", STICK, " name='Stick' interfaces='b******'")
    wire.answer("admin.vm.device.block.Available+ sys-usb", stick + device_line("sdb", "1:1"))
    wire.answer("admin.vm.device.block.Attached+ work", use_line("sda", STICK, " mode='manual' _read-only='yes'"))
    wire.answer(
        "admin.vm.device.block.Assigned+ work",
        use_line("*", STICK, " mode='auto-attach'") + use_line("sdz", "*", " mode='required'"),
    )
    lines = [
        "sys-usb:sda  Disk: Stick     work (attached, read-only=yes), *work (auto-attach)",
        "sys-usb:sdb  unknown device",
        "sys-usb:sdz  (not there)     *work (required)",
    ]
    assert [line.rstrip() for line in tool.ok().splitlines()] == lines
    assert tool.ok("ls") == tool.ok("l", "-s") == tool.ok("available", "sys-usb") == tool.ok()
    assert [line.split()[0] for line in tool.ok("list", "work").splitlines()] == ["sys-usb:sda", "sys-usb:sdz"]
    assert tool.ok("list", "dom0") == ""
    tool.fails(3, "there is no VM 'other'", "list", "other")


def test_no_devices(tool: Tool) -> None:
    assert tool.ok("list") == ""


def test_a_vm_that_is_just_being_removed_is_left_out(tool: Tool) -> None:
    tool.wire.refuse("admin.vm.device.block.Attached+ work", "QubesVMNotFoundError", "gone")
    assert tool.ok("list") == ""
    tool.fails(3, "gone", "detach", "work")


@pytest.mark.parametrize(
    "text",
    [b"x\n", b"\n", b"sda:1 a='1'\n", b" device_id='1' port_id='sda' backend_domain='sys-usb'\n",
     b"sda:1 device_id='\n", b"sda:1 device_id='' port_id='sda' backend_domain='sys-usb'\n", b"\xff", b"\x1b[2J"],
)  # fmt: skip
def test_answers_that_make_no_sense(tool: Tool, text: bytes) -> None:
    for what, words in (
        ("Available+ sys-usb", ("list",)), ("Attached+ work", ("list",)), ("Assigned+ work", ("list",)),
        ("Available+sda sys-usb", ("assign", "work", "sys-usb:sda")), ("Assigned+ work", ("unassign", "work")),
        ("Attached+ work", ("detach", "work")), ("Assigned+ work", ("unassign", "work", "sys-usb:sda")),
        ("Available+sda sys-usb", ("info", "sys-usb:sda")),
    ):  # fmt: skip
        tool.wire.answer(f"admin.vm.device.block.{what}", text)
        assert tool.fails(11, "cannot be understood", *words).replace("\n", "").isprintable()
        tool.wire.answer(f"admin.vm.device.block.{what}")
    assert tool.wire.sent("Assign", "Unassign", "Detach") == []


def test_control_characters_are_escaped(tool: Tool) -> None:
    line = device_line("sda", "1", " name='\x1b[2J' _x='\x9b1m' \u202e='1'").encode()
    tool.wire.answer("admin.vm.device.block.Available+ sys-usb", line)
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb", line)
    tool.fails(11, "cannot be understood", "list")
    line = device_line("sda", "1", " name='\x1b[2J' _x='\x9b1m'").encode()
    tool.wire.answer("admin.vm.device.block.Available+ sys-usb", line)
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb", line)
    for words in (("list",), ("info", "sys-usb:sda")):
        assert tool.ok(*words).replace("\n", "").isprintable()


def changes(tool: Tool) -> list[tuple[str, str]]:
    """Return the calls that change something, without their common beginning, and their payloads."""
    sent = tool.wire.sent("Assign", "Unassign", "Attach", "Detach")
    return [(call.removeprefix("admin.vm.device."), payload.decode()) for call, payload in sent]


def text_of(
    port: str, device_id: str, mode: str, more: str = "", devclass: str = "block", backend: str = "sys-usb"
) -> str:
    return (
        f"device_id='{device_id}' port_id='{port}' devclass='{devclass}' backend_domain='{backend}' mode='{mode}'{more}"
    )


ASSIGNMENTS = [
    (("sys-usb:sda",), "sda+0000+0000++b______", text_of("sda", BLOCK_ID, "auto-attach")),
    (("--auto", "sys-usb:sda:a:b"), "sda+a+b", text_of("sda", "a:b", "auto-attach")),
    (("-r", "sys-usb:sda:*"), "sda+_", text_of("sda", "*", "required")),
    (("--ask", "--port", "sys-usb:sda:a"), "sda+_", text_of("sda", "*", "ask-to-attach")),
    (("-p", "sys-usb:sda"), "sda+_", text_of("sda", "*", "auto-attach")),
    (("--device", "sys-usb:sda"), "_+0000+0000++b______", text_of("*", BLOCK_ID, "auto-attach")),
    (("--only-device", "sys-usb:sda:a"), "_+a", text_of("*", "a", "auto-attach")),
    (
        ("--ro", "-o", "frontend-dev=xvdi", "--option", "x=it's", "sys-usb:sda:a"),
        "sda+a",
        text_of("sda", "a", "auto-attach", r" _frontend-dev='xvdi' _x='it\'s' _read-only='yes'"),
    ),
]


@pytest.mark.parametrize(("words", "argument", "payload"), ASSIGNMENTS)
def test_assign(tool: Tool, words: tuple[str, ...], argument: str, payload: str) -> None:
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb", device_line("sda", BLOCK_ID))
    tool.wire.answer(f"admin.vm.device.block.Assign+sys-usb+{argument} work")
    assert tool.ok("assign", "work", *words) == ""
    assert changes(tool) == [(f"block.Assign+sys-usb+{argument} work", payload)]


def test_an_empty_port_is_assigned_only_when_that_is_meant(tool: Tool) -> None:
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb")
    sentence = "sys-usb has no block device sda; 'qvm-device block list sys-usb' lists those that it has"
    tool.fails(3, sentence, "assign", "work", "sys-usb:sda")
    tool.fails(3, sentence, "assign", "work", "--device", "sys-usb:sda")
    assert changes(tool) == []


def test_pci_devices_are_required(make: Make) -> None:
    tool = make(qvm_device.PCI, "pci")
    call = "admin.vm.device.pci.Assign+dom0+00_1f.3+_ work"
    tool.wire.answer(call)
    for words in (("assign", "work", "dom0:00_1f.3", "--port"), ("s", "-r", "-p", "work", "dom0:00_1f.3")):
        tool.ok(*words)
    assert changes(tool) == [(call[16:], text_of("00_1f.3", "*", "required", "", "pci", "dom0"))] * 2
    for flag in ("--auto", "--ask"):
        tool.fails(2, "PCI devices cannot be attached to a running VM", "assign", flag, "work", "dom0:00_1f.3")


def test_modes_that_classes_do_not_have(make: Make) -> None:
    tool = make(qvm_device.USB, "usb")
    tool.fails(2, "usb devices cannot be required ones, only pci and block", "assign", "-r", "work", "sys-usb:2-1")
    tool = make(qvm_device.COMMAND, "")
    tool.fails(2, "webcam devices cannot be attached by themselves; choose --ask", "webcam", "assign", "work", "a:b")
    tool.fails(2, "mic devices cannot be required ones", "mic", "assign", "--required", "work", "dom0:mic")
    assert tool.wire.requests == []


def test_unassign(tool: Tool) -> None:
    tool.wire.answer(
        "admin.vm.device.block.Assigned+ work",
        use_line("sda", "a", " mode='required'") + use_line("sdb", "b", "") + use_line("sda", "*", ""),
    )
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb", device_line("sda", "a"))
    for argument in ("sda+a", "sda+_", "sdb+b", "_+a"):
        tool.wire.answer(f"admin.vm.device.block.Unassign+sys-usb+{argument} work")
    for words, expected in (
        (("sys-usb:sda",), ["sda+a", "sda+_"]), (("sys-usb:sda:a",), ["sda+a"]), (("sys-usb:sda", "--port"), ["sda+_"]),
        (("sys-usb:sda", "--device"), ["_+a"]), ((), ["sda+a", "sdb+b", "sda+_"]), (("sys-usb:sda:*",), ["sda+_"]),
    ):  # fmt: skip
        before = len(changes(tool))
        tool.ok("unassign", "work", *words)
        assert changes(tool)[before:] == [(f"block.Unassign+sys-usb+{argument} work", "") for argument in expected]
    tool.fails(3, "sys-usb:sdc is not assigned to work; 'qvm-device block list work'", "u", "work", "sys-usb:sdc")
    tool.wire.refuse("admin.vm.device.block.Unassign+sys-usb+sdc+c work", "DeviceNotAssigned", "it is not")
    tool.fails(3, "it is not", "u", "work", "sys-usb:sdc:c")


def test_detach(tool: Tool) -> None:
    tool.wire.answer("admin.vm.device.block.Attached+ work", use_line("sda", "a", "") + use_line("sdb", "b", ""))
    for argument in ("sda+a", "sdb+b", "sda+_"):
        tool.wire.answer(f"admin.vm.device.block.Detach+sys-usb+{argument} work")
    tool.ok("detach", "work")
    tool.ok("d", "work", "sys-usb:sda")
    assert [call.split("+", 2)[2] for call, _ in changes(tool)] == ["sda+a work", "sdb+b work", "sda+_ work"]


def test_a_device_with_a_name_that_no_request_can_carry(tool: Tool) -> None:
    tool.wire.answer("admin.vm.device.block.Attached+ work", use_line("s/d", "a", ""))
    tool.fails(2, "is no device", "detach", "work")


def test_attach_says_what_the_server_says(tool: Tool) -> None:
    call = "admin.vm.device.block.Attach+sys-usb+sda+_ work"
    tool.wire.refuse(call, "QubesNotImplementedError", "devices cannot be attached yet")
    tool.fails(15, "devices cannot be attached yet", "attach", "work", "sys-usb:sda", "--ro")
    assert changes(tool) == [(call[16:], text_of("sda", "*", "manual", " _read-only='yes'"))]


def test_attach_persistently(tool: Tool, make: Make) -> None:
    for argument in ("Assign+sys-usb+sda+a", "Attach+sys-usb+sda+a"):
        tool.wire.answer(f"admin.vm.device.block.{argument} work")
    tool.wire.answer("admin.vm.CurrentState+ work", "mem=0 power_state=Halted")
    tool.ok("attach", "-p", "work", "sys-usb:sda:a")
    tool.wire.answer("admin.vm.CurrentState+ work", "mem=0 power_state=Running")
    tool.ok("at", "--persistent", "work", "sys-usb:sda:a")
    assigned = ("block.Assign+sys-usb+sda+a work", text_of("sda", "a", "required"))
    assert changes(tool) == [assigned, assigned, ("block.Attach+sys-usb+sda+a work", text_of("sda", "a", "manual"))]
    tool = make(qvm_device.PCI, "pci")
    tool.wire.answer("admin.vm.device.pci.Available+00_1f.3 dom0", device_line("00_1f.3", "x", "", "dom0", "pci"))
    tool.wire.answer("admin.vm.device.pci.Assign+dom0+00_1f.3+x work")
    tool.ok("attach", "--persistent", "work", "dom0:00_1f.3")
    assert len(changes(tool)) == 4


def test_info(tool: Tool) -> None:
    tool.wire.answer("admin.vm.device.block.Available+sda sys-usb", device_line("sda", "a", " name='Stick' _size='9'"))
    tool.wire.answer("admin.vm.device.block.Assigned+ work", use_line("sda", "*", " mode='required'"))
    assert [line.split(maxsplit=1) for line in tool.ok("info", "sys-usb:sda").splitlines()] == [
        ["device_id", "a"], ["port_id", "sda"], ["devclass", "block"], ["backend_domain", "sys-usb"], ["name", "Stick"],
        ["size", "9"], ["description", "Stick"], ["used", "by: *work (required)"],
    ]  # fmt: skip
    tool.wire.answer("admin.vm.device.block.Assigned+ work")
    assert tool.ok("i", "sys-usb:sda:a").endswith("used by: nobody\n")
    tool.fails(3, "sys-usb has no block device sda:b", "i", "sys-usb:sda:b")


def test_all_classes(make: Make) -> None:
    tool = make(qvm_device.COMMAND, "")
    tool.wire.answer("admin.deviceclass.List+ dom0", "pci\nblock\n")
    assert tool.ok("--list-device-classes") == "pci\nblock\n"
    assert tool.ok("block") == tool.ok("block", "list") == ""
    assert tool.wire.requests[1][0] == "admin.vm.List+ dom0"
    tool.fails(2, "name the class of devices, as in 'qvm-device block'")
    tool.fails(2, "cannot be the name of a class", "a/b", "list")
    tool.fails(12, "nobody expected 'admin.vm.device.odd.Available+ dom0'", "odd")


def test_wrong_command_lines(tool: Tool) -> None:
    for part, *words in (
        ("'lst' is none of list, info", "lst"),
        ("'assign' takes a VM and a device", "assign", "work"),
        ("'info' takes a device", "info"),
        ("'detach' takes a VM and perhaps a device", "detach"),
        ("'sda' names no device", "assign", "work", "sda"),
        ("--required is for assign, not for attach", "attach", "-r", "work", "a:b"),
        ("--port is for assign and unassign, not for attach", "attach", "--port", "work", "a:b"),
        ("--ro is for assign and attach, not for detach", "detach", "--ro", "work"),
        ("--persistent is for attach", "list", "-p"),
        ("say only one of --required, --auto and --ask", "assign", "-r", "--ask", "work", "a:b"),
        ("--port and --device exclude each other", "assign", "-p", "--device", "work", "a:b"),
        ("--port and --device exclude each other", "unassign", "--port", "--device", "work", "a:b"),
        ("--option takes KEY=VALUE, not 'ro'", "assign", "-o", "ro", "work", "a:b"),
        ("--option takes KEY=VALUE, not '=x'", "assign", "-o", "=x", "work", "a:b"),
        ("option 'a' is given twice", "assign", "-o", "a=1", "-o", "a=2", "work", "a:b"),
        ("cannot be the name of a device's option", "assign", "-o", "a b=1", "work", "a:b"),
        ("cannot be the name of a device's option", "assign", "-o", "\u00e9=1", "work", "a:b"),
        ("must be printable ASCII", "assign", "-o", "a=\n", "work", "a:b"),
        ("must be printable ASCII without", "assign", "-o", "a=\\", "work", "a:b"),
    ):
        tool.fails(2, part, *words)
    assert tool.wire.requests == []


@pytest.mark.parametrize("command", [qvm_device.COMMAND, qvm_device.BLOCK, qvm_device.PCI, qvm_device.USB])
def test_the_examples(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(command, monkeypatch)
