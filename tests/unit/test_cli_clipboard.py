"""crannog clipboard: two steps, what is believed of a VM, and that policy decides on the second."""

import os
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from crannog.cli import clipboard, clipboard_guest, guest_service
from crannog.cli.clipboard_store import LIFETIME, Clipboard
from tests.unit.cli_world import FakeDaemon, Tool, serving
from tests.unit.clipboard_world import Clock, FakePolicy, FakeVM
from tests.unit.policy_world import VMS

ALLOW = "qubes.ClipboardPaste * @anyvm @anyvm allow\n"
ASK = "qubes.ClipboardPaste * @anyvm @anyvm ask\n"
EMPTY = "the global clipboard is empty\n"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        daemon.answers["admin.vm.List"] = "".join(
            f"{vm.name} class={vm.klass} state={vm.power_state} uuid={vm.uuid}\n" for vm in VMS
        )
        daemon.answers["admin.vm.CurrentState"] = "mem=0 mem_static_max=0 cputime=0 power_state=Halted"
        yield daemon


@pytest.fixture
def vms(daemon: FakeDaemon) -> Iterator[dict[str, FakeVM]]:
    vms = {name: FakeVM(daemon.paths.rpc_socket(name)) for name in ("work", "vault", "relay")}
    yield vms
    for vm in vms.values():
        vm.close()


@pytest.fixture
def policy(daemon: FakeDaemon) -> Iterator[FakePolicy]:
    policy = FakePolicy(daemon.paths.policy_socket)
    yield policy
    policy.close()


@pytest.fixture
def tool(daemon: FakeDaemon, vms: dict[str, FakeVM], policy: FakePolicy, capsys: pytest.CaptureFixture[str]) -> Tool:
    assert daemon.paths
    assert vms
    assert policy
    return Tool(clipboard.COMMAND, clipboard._act, capsys)


def copy(tool: Tool, vms: dict[str, FakeVM], text: str = "secret") -> None:
    vms["work"].clipboard = text.encode()
    tool.ok("copy", "work")


# -- copy


def test_copy_keeps_the_text_in_a_file_of_the_users_own(tool: Tool, vms: dict[str, FakeVM], daemon: FakeDaemon) -> None:
    before = os.umask(0)
    try:
        copy(tool, vms, "häß\n\tx")
    finally:
        os.umask(before)
    path = Path(daemon.paths.clipboard)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().endswith("\nhäß\n\tx".encode())
    assert vms["work"].commands == ["DEFAULT:QUBESRPC qubes.ClipboardCopy+ dom0"]
    assert sorted(entry.name for entry in path.parent.glob("clipboard*")) == ["clipboard", "clipboard.lock"]


@pytest.mark.parametrize("text", ["x", "x" * 65536, "\u20ac" * 21845, "\x1b[31m\r\n"])
def test_text_arrives_as_it_was(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy, text: str) -> None:
    policy.rules = ALLOW
    copy(tool, vms, text)
    tool.ok("paste", "vault")
    assert vms["vault"].clipboard == text.encode()


@pytest.mark.parametrize(
    ("untrusted_data", "sentence"),
    [
        (b"", "has no text"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"\xed\xa0\x80", "is not UTF-8"),
        (b"caf\xc3", "is not UTF-8"),
        (b"a\0b", "has NUL"),
        (b"x" * 65537, "more than 65536 bytes"),
        (b"x" * 131072, "more than 65536 bytes"),
        (b"x" * 131073, "more than 65536 bytes"),
        (b"x" * 20_000_000, "more than 65536 bytes"),
    ],
)
def test_anything_but_text_is_refused(tool: Tool, vms: dict[str, FakeVM], untrusted_data: bytes, sentence: str) -> None:
    copy(tool, vms, "before")
    vms["work"].clipboard = untrusted_data
    assert sentence in tool.fails(2, "copy", "work")
    assert tool.ok("show", "--content").endswith("\nbefore\n"), "and nothing has changed"


def test_what_a_vm_complains_of_is_quoted_short_and_harmless(tool: Tool, vms: dict[str, FakeVM]) -> None:
    vms["work"].code, vms["work"].complaint = 1, b"no session\x1b]0;x\x07\xff\nmore " + b"x" * 1000
    sentence = tool.fails(1, "copy", "work")
    assert sentence.endswith("qubes.ClipboardCopy ended with 1, and said 'no session_]0;x_\ufffd'")
    vms["work"].complaint = b"x" * 10_000_000
    assert "sent more than 65536 bytes" in tool.fails(2, "copy", "work")


def test_a_vm_without_the_service_or_an_answer(
    tool: Tool, vms: dict[str, FakeVM], monkeypatch: pytest.MonkeyPatch
) -> None:
    vms["work"].code = 127
    assert "install the graphical guest tools" in tool.fails(125, "copy", "work")
    monkeypatch.setattr(clipboard_guest, "PATIENCE", 0.2)
    vms["work"].is_silent = True
    assert "did not answer about its clipboard" in tool.fails(125, "copy", "work")


def test_vms_that_do_not_run_are_not_started(tool: Tool, daemon: FakeDaemon) -> None:
    assert "start it with" in tool.fails(2, "copy", "debian")
    assert "admin.vm.Start" not in {asked.method for asked in daemon.asked}


# -- paste


def test_paste_empties_the_global_clipboard(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    policy.rules = ALLOW
    copy(tool, vms)
    assert tool.ok("paste", "vault").startswith("6 bytes of work are in the clipboard of vault")
    assert vms["vault"].commands == ["DEFAULT:QUBESRPC qubes.ClipboardPaste+ dom0"]
    assert tool.ok("show") == EMPTY
    assert "fill it with" in tool.fails(3, "paste", "vault")
    (request,) = policy.asked
    assert (request.source, request.target, request.service) == ("work", "vault", "qubes.ClipboardPaste")


@pytest.mark.parametrize(
    ("rules", "answer"), [("", None), ("qubes.ClipboardPaste * work vault deny\n" + ALLOW, None), (ASK, None)]
)
def test_what_is_denied_stays_where_it_is(
    tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy, rules: str, answer: str | None
) -> None:
    policy.rules, policy.answer = rules, answer
    copy(tool, vms)
    assert "crannog policy explain qubes.ClipboardPaste work vault" in tool.fails(13, "paste", "vault")
    assert (vms["vault"].clipboard, vms["vault"].commands) == (b"", [])
    assert tool.ok("show", "--content").endswith("\nsecret\n")


def test_the_user_who_is_asked_decides(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    policy.rules, policy.answer = ASK, "vault"
    copy(tool, vms)
    tool.ok("paste", "vault")
    policy.answer = "relay"
    copy(tool, vms, "other")
    assert "in the clipboard of relay" in tool.ok("paste", "vault")
    assert (vms["vault"].clipboard, vms["relay"].clipboard) == (b"secret", b"other")


@pytest.mark.parametrize("target", ["@adminvm", "@dispvm"])
def test_only_vms_that_run_can_be_chosen(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy, target: str) -> None:
    policy.rules = f"qubes.ClipboardPaste * work @anyvm allow target={target}\n"
    copy(tool, vms)
    assert "the policy chose" in tool.fails(13, "paste", "vault")
    assert tool.ok("show") != EMPTY


def test_a_rules_user_is_who_gets_it(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    policy.rules = "qubes.ClipboardPaste * work vault allow user=guest\n"
    copy(tool, vms)
    tool.ok("paste", "vault")
    assert vms["vault"].commands == ["guest:QUBESRPC qubes.ClipboardPaste+ dom0"]


def test_a_vm_gets_its_own_text_back_without_a_question(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    copy(tool, vms)
    vms["work"].clipboard = b""
    tool.ok("paste", "work")
    assert (vms["work"].clipboard, policy.asked) == (b"secret", [])


def test_a_vm_that_was_renamed_is_asked_about_by_its_name_of_today(
    tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy, daemon: FakeDaemon
) -> None:
    policy.rules = ALLOW
    store = Clipboard(daemon.paths)
    store.save("old-name", VMS[1].uuid, b"text")
    tool.ok("paste", "vault")
    assert policy.asked[0].source == "work"
    # A new VM with the name of one that is gone is not that one.
    store.save("work", "00000000-0000-0000-0000-0000000000ff", b"text")
    assert "is gone" in tool.fails(3, "paste", "vault")
    assert len(policy.asked) == 1
    assert vms["vault"].clipboard == b"text"


def test_nothing_is_pasted_when_the_policy_cannot_be_asked(
    tool: Tool, vms: dict[str, FakeVM], daemon: FakeDaemon
) -> None:
    copy(tool, vms)
    os.unlink(daemon.paths.policy_socket)
    assert "the policy cannot be asked" in tool.fails(125, "paste", "vault")
    assert vms["vault"].commands == []


def test_a_paste_that_fails_keeps_the_text(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    policy.rules = ALLOW
    copy(tool, vms)
    vms["vault"].code, vms["vault"].complaint = 1, b"no session of 'user' is ready\n"
    assert "no session of 'user' is ready" in tool.fails(1, "paste", "vault")
    assert tool.ok("show", "--content").endswith("\nsecret\n")


def test_what_was_asked_about_is_what_is_pasted(
    tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy, daemon: FakeDaemon
) -> None:
    policy.rules, policy.answer = ASK, "vault"
    copy(tool, vms)
    policy.before_answer = lambda: Clipboard(daemon.paths).save("work", VMS[1].uuid, b"newer")
    assert "was changed meanwhile" in tool.fails(4, "paste", "vault")
    assert vms["vault"].commands == []
    assert tool.ok("show", "--content").endswith("\nnewer\n")


def test_of_two_pastes_at_once_one_gets_it(tool: Tool, vms: dict[str, FakeVM], policy: FakePolicy) -> None:
    policy.rules, policy.answer = ASK, "vault"
    copy(tool, vms)
    codes = []

    def paste_too() -> None:
        policy.before_answer = lambda: None
        codes.append(clipboard.main(["paste", "vault"]))

    # The second runs from its beginning to its end while the first is being asked about; signals are the main thread's.
    policy.before_answer = paste_too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_service.Service, "_time_limit", lambda _service, _vm: nullcontext())
        codes.append(tool.run("paste", "vault")[0])
    assert codes == [0, 4]
    assert len(vms["vault"].commands) == 1


# -- show, clear, age


def test_show_prints_the_content_on_demand_and_harmless(tool: Tool, vms: dict[str, FakeVM]) -> None:
    assert tool.ok("show") == EMPTY
    copy(tool, vms, "a\n\tb\x1b[31m\u202ec\r")
    assert tool.ok("show").startswith("work: 14 bytes, copied ")
    assert "a\n" not in tool.ok("show")
    assert tool.ok("show", "--content").split("\n", 1)[1] == "a\n\tb\\x1b[31m\\u202ec\\r\n"
    tool.ok("clear")
    assert tool.ok("show") == EMPTY
    tool.ok("clear")


@pytest.mark.parametrize("later", [LIFETIME, LIFETIME * 10, -1])
def test_text_dies(daemon: FakeDaemon, later: float) -> None:
    clock = Clock()
    store = Clipboard(daemon.paths, clock)
    store.save("work", VMS[1].uuid, b"text")
    clock.now += LIFETIME - 1
    clip = store.load()
    assert clip
    assert clip.text == b"text"
    clock.now = clip.copied + later
    assert store.load() is None
    assert not os.path.exists(daemon.paths.clipboard)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"[]\ntext", b'{"vm": 1}\n', b"\xff\n", b'{"vm":"a","uuid":"b","copied":"x"}\n']
)
def test_a_damaged_file_is_told_and_cleared(tool: Tool, daemon: FakeDaemon, content: bytes) -> None:
    Path(daemon.paths.clipboard).write_bytes(content)
    assert "it is damaged" in tool.fails(9, "show")
    assert "it is damaged" in tool.fails(9, "paste", "vault")
    tool.ok("clear")
    assert tool.ok("show") == EMPTY


# -- the command line


@pytest.mark.parametrize(
    "words",
    [
        ("copy",),
        ("paste",),
        ("copy", "work", "vault"),
        ("copy", "work", "--focused"),
        ("copy", "dom0"),
        ("paste", "dom0"),
        ("show", "work"),
        ("show", "--focused"),
        ("clear", "--content"),
        ("cut", "work"),
    ],
)
def test_command_lines_that_make_no_sense(tool: Tool, vms: dict[str, FakeVM], words: tuple[str, ...]) -> None:
    tool.fails(2, *words)
    assert vms["work"].commands == []


def write_xprop(folder: Path, active: str, owner: str) -> None:
    program = folder / "xprop"
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in *-root*) echo '{active}' ;; *'-id 0x1e00007 '*) printf '%s\\n' '{owner}' ;; esac\n"
    )
    program.chmod(0o755)


ACTIVE = "_NET_ACTIVE_WINDOW: window id # 0x1e00007"


def test_the_focused_window_says_whose_it_is(
    tool: Tool, vms: dict[str, FakeVM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":77")
    write_xprop(tmp_path, ACTIVE, 'WM_CLASS = "work", "crannog"')
    vms["work"].clipboard = b"text"
    tool.ok("copy", "--focused")
    assert tool.ok("show").startswith("work: 4 bytes")
    for active, owner in (
        ("_NET_ACTIVE_WINDOW: window id # 0x0", ""),
        ("_NET_ACTIVE_WINDOW:  not found.", ""),
        (ACTIVE, 'WM_CLASS = "xterm", "XTerm"'),
        (ACTIVE, 'WM_CLASS = "work", "crannog", "x"'),
        (ACTIVE, 'WM_CLASS = "../x", "crannog"'),
        (ACTIVE, "WM_CLASS:  not found."),
    ):
        write_xprop(tmp_path, active, owner)
        assert "not one of a VM" in tool.fails(16, "copy", "--focused")
    monkeypatch.delenv("DISPLAY")
    assert "DISPLAY is not set" in tool.fails(16, "paste", "--focused")
