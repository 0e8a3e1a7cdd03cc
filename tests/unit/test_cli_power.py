"""qvm-start, qvm-shutdown, qvm-kill, qvm-pause, qvm-unpause: whom they ask for what, and what they tell."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.cli import qvm_pause, qvm_start, qvm_stop, shutdowns
from crannog.errors import (
    HypervisorError,
    InUseError,
    ShutdownTimeoutError,
    StateError,
    VMNotFoundError,
    VMNotHaltedError,
    VMNotRunningError,
)
from tests.unit.cli_world import Asked, FakeDaemon, Reply, Tool, listing, serving


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setattr(shutdowns, "PAUSE", 0.001)
    with serving(monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def start(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_start.COMMAND, qvm_start._start, capsys)


@pytest.fixture
def shutdown(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_stop.SHUTDOWN, qvm_stop._shutdown, capsys)


@pytest.fixture
def kill(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_stop.KILL, qvm_stop._kill, capsys)


@pytest.fixture
def pause(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_pause.PAUSE, qvm_pause._pause, capsys)


@pytest.fixture
def unpause(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_pause.UNPAUSE, qvm_pause._unpause, capsys)


ALL = listing(
    "dom0 AdminVM Running", "away RemoteVM NA", "debian TemplateVM Halted", "held AppVM Paused", "mail AppVM Running",
    "net AppVM Running", "sleepy AppVM Suspended", "starting AppVM Transient",
)  # fmt: skip


class World:
    """VMs that run and halt: `needs` says who gets its network from whom, `stubborn` who never halts by itself."""

    def __init__(self, daemon: FakeDaemon, needs: dict[str, str], *alone: str) -> None:
        self.needs = needs
        self.running = dict.fromkeys([*needs, *needs.values(), *alone])
        self.stubborn: set[str] = set()
        daemon.answers |= {
            "admin.vm.Shutdown": self._shutdown,
            "admin.vm.Kill": self._kill,
            "admin.vm.List": lambda _: listing(*(f"{vm} AppVM Running" for vm in self.running)),
            "crannog.vm.Table": lambda _: "".join(f"{vm}\tRunning\t{needs.get(vm, '')}\n" for vm in self.running),
        }

    def _shutdown(self, asked: Asked) -> Reply:
        if asked.vm not in self.running:
            return VMNotRunningError(f"{asked.vm} is Halted")
        users = [vm for vm in self.running if self.needs.get(vm) == asked.vm]
        if users and "force" not in asked.argument:
            return InUseError(f"{asked.vm} is in use by {users[0]}")
        if asked.vm not in self.stubborn:
            del self.running[asked.vm]
        elif "wait" in asked.argument:
            return ShutdownTimeoutError(f"{asked.vm} did not shut down")
        return ""

    def _kill(self, asked: Asked) -> Reply:
        if asked.vm not in self.running:
            return VMNotRunningError(f"{asked.vm} is Halted")
        del self.running[asked.vm]
        return ""


CHAIN = {"mail": "fw", "bank": "fw", "fw": "net"}


def test_those_that_others_need_are_asked_when_the_others_are_halted(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, CHAIN)
    assert shutdown.ok("--wait", "net", "fw", "mail", "bank") == ""
    assert not world.running
    asked = [item.vm for item in daemon.asked if item.method == "admin.vm.Shutdown"]
    assert asked == ["mail", "bank", "fw", "net"]


def test_each_is_asked_once_and_all_that_nobody_needs_at_once(
    daemon: FakeDaemon, shutdown: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are asked before an answer of one is taken."""
    World(daemon, {}, "a", "b")
    going: list[int] = []
    take_answers = shutdowns.Shutdowns._take_answers

    def note(self: shutdowns.Shutdowns) -> None:
        going.append(len(self._going))
        take_answers(self)

    monkeypatch.setattr(shutdowns.Shutdowns, "_take_answers", note)
    shutdown.ok("--all", "--wait")
    assert going[0] == 2
    assert daemon.heard[2:] == ["admin.vm.Shutdown+wait a", "admin.vm.Shutdown+wait b"]


def test_what_is_needed_is_asked_as_soon_as_its_own_users_are_gone(daemon: FakeDaemon, shutdown: Tool) -> None:
    """Two chains: a VM that takes its time holds up nobody who has nothing to do with it."""
    world = World(daemon, {"slow": "net", "quick": "other", "other": "far"})
    world.stubborn.add("slow")
    code, _, err = shutdown.run("--all", "--wait", "--timeout", "1")
    assert (code, err) == (0, "qvm-shutdown: slow did not shut down within 1 s and was killed\n")
    asked = [str(item) for item in daemon.asked if item.method in ("admin.vm.Shutdown", "admin.vm.Kill")]
    order = list(dict.fromkeys(word.split()[-1] for word in asked))
    assert order == ["slow", "quick", "other", "far", "net"]
    assert asked.index("admin.vm.Shutdown+wait far") < asked.index("admin.vm.Kill slow")


def test_one_that_the_daemon_gives_up_on_is_asked_again_until_the_time_is_over(
    daemon: FakeDaemon, shutdown: Tool
) -> None:
    """A VM's shutdown_timeout may be shorter than --timeout."""
    world = World(daemon, {}, "a")
    answers: list[Reply] = [ShutdownTimeoutError("a did not shut down"), VMNotRunningError("a is Halted")]
    daemon.answers["admin.vm.Shutdown"] = lambda _: answers.pop(0)
    assert shutdown.ok("--wait", "--timeout", "60", "a") == ""
    assert not answers
    assert list(world.running) == ["a"]


def test_one_that_halts_by_itself_before_it_is_asked_is_no_failure(daemon: FakeDaemon, shutdown: Tool) -> None:
    World(daemon, {}, "a")
    daemon.answers["admin.vm.Shutdown"] = VMNotRunningError("a is Halted")
    assert shutdown.ok("--all", "--wait") == ""


def test_force_asks_all_at_once(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, CHAIN)
    shutdown.ok("--wait", "--force", "net", "fw", "mail")
    asked = [str(item) for item in daemon.asked if item.method == "admin.vm.Shutdown"]
    assert asked == [f"admin.vm.Shutdown+force+wait {vm}" for vm in ("net", "fw", "mail")]
    assert list(world.running) == ["bank"]


def test_a_daemon_that_breaks_off_is_told_of_for_each(daemon: FakeDaemon, shutdown: Tool) -> None:
    World(daemon, {}, "a", "b")
    answer = daemon._answer
    daemon._answer = lambda request: b"" if b"Shutdown" in request else answer(request)  # type: ignore[method-assign]
    code, _, err = shutdown.run("--wait", "a", "b")
    assert (code, err.count("crannogd gave no answer to admin.vm.Shutdown")) == (11, 2)


def test_one_that_is_needed_by_somebody_else_is_told_at_the_end(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, {**CHAIN, "other": "net"})
    assert shutdown.fails(4, "--wait", "net", "fw", "mail", "bank") == "net is in use by other"
    assert set(world.running) == {"net", "other"}


def test_two_that_need_each_other_do_not_keep_it_busy_for_ever(daemon: FakeDaemon, shutdown: Tool) -> None:
    World(daemon, {"a": "b", "b": "a"})
    code, out, err = shutdown.run("--all", "--wait")
    assert (code, out) == (4, "")
    assert err == "qvm-shutdown: a is in use by b\nqvm-shutdown: b is in use by a\n"


def test_one_that_does_not_halt_holds_up_only_what_it_needs(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, CHAIN, "alone")
    world.stubborn.add("bank")
    code, _, err = shutdown.run("--all", "--wait")
    assert code == 8
    assert err.splitlines() == [
        "qvm-shutdown: bank did not shut down",
        "qvm-shutdown: fw is in use by bank",
        "qvm-shutdown: net is in use by fw",
    ]
    assert set(world.running) == {"bank", "fw", "net"}


def test_those_that_do_not_halt_in_time_are_killed_and_then_the_others_halt(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, CHAIN)
    world.stubborn.add("bank")
    code, out, err = shutdown.run("--all", "--wait", "--timeout", "0")
    assert (code, out, err) == (0, "", "qvm-shutdown: bank did not shut down within 0 s and was killed\n")
    assert not world.running
    assert [str(asked) for asked in daemon.asked if asked.method == "admin.vm.Kill"] == ["admin.vm.Kill bank"]


def noting(order: list[str], function: Callable[..., object]) -> Callable[..., object]:
    """Return the function, whose name is noted at each call."""

    def note(*words: object) -> object:
        order.append(function.__name__)
        return function(*words)

    return note


def test_all_that_are_late_are_killed_at_the_same_time(
    daemon: FakeDaemon, shutdown: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(daemon, {}, "a", "b")
    world.stubborn.update("ab")
    order: list[str] = []
    for name in ("_try_to_send", "_take_reply"):
        monkeypatch.setattr(shutdowns, name, noting(order, getattr(shutdowns, name)))
    code, _, err = shutdown.run("--all", "--wait", "--timeout", "0")
    assert (code, err.count("did not shut down within 0 s and was killed")) == (0, 2)
    assert order[-4:] == ["_try_to_send", "_try_to_send", "_take_reply", "_take_reply"]
    assert not world.running


def test_one_that_halts_before_it_is_killed_is_no_failure(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, {}, "a")
    world.stubborn.add("a")
    daemon.answers["admin.vm.Kill"] = VMNotRunningError("a is Halted")
    assert shutdown.ok("--wait", "--timeout", "0", "a") == ""
    daemon.answers["admin.vm.Kill"] = HypervisorError("libvirt refuses")
    assert shutdown.fails(10, "--wait", "--timeout", "0", "a") == "libvirt refuses"


def test_all_at_once_does_not_look_at_who_needs_whom(daemon: FakeDaemon, shutdown: Tool) -> None:
    world = World(daemon, CHAIN, "dom1")
    shutdown.ok("--all", "--exclude", "dom1")
    assert list(world.running) == ["dom1"]
    assert daemon.heard[1] == "admin.vm.Shutdown+force mail"


@pytest.mark.parametrize("words", [("--wait", "a"), ("--wait", "--timeout", "9", "a"), ("a",)])
def test_a_halted_vm_is_an_error_when_it_is_named(words: tuple[str, ...], daemon: FakeDaemon, shutdown: Tool) -> None:
    World(daemon, {})
    assert shutdown.fails(5, *words) == "a is Halted"


def test_the_first_failure_counts_and_all_are_told(daemon: FakeDaemon, shutdown: Tool) -> None:
    World(daemon, {"mail": "net"})
    code, _, err = shutdown.run("gone", "net", "dom0", "mail")
    assert code == 5
    assert [line.split(": ")[1].split(" ")[0] for line in err.splitlines()] == ["gone", "net", "dom0"]


def test_a_dry_run_asks_nobody(daemon: FakeDaemon, shutdown: Tool) -> None:
    daemon.answers["admin.vm.List"] = ALL
    assert shutdown.ok("--dry-run", "--all", "--wait", "--exclude", "net").splitlines() == [
        f"{vm} would be asked to shut down" for vm in ("held", "mail", "sleepy", "starting")
    ]
    assert daemon.heard == ["admin.vm.List dom0"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name the VMs to shut down, or say --all"),
        ("--all mail", "but not both"),
        ("--exclude mail net", "--exclude leaves VMs out of --all"),
        ("--timeout 5 mail", "--timeout says how long --wait waits"),
        ("--wait --timeout soon mail", "takes a number of seconds, not 'soon'"),
        ("--wait --timeout \u0663 mail", "takes a number of seconds"),
        ("--wait --timeout 99999999 mail", "takes a number of seconds"),
    ],
)
def test_wrong_uses_of_shutdown(words: str, sentence: str, shutdown: Tool, daemon: FakeDaemon) -> None:
    assert sentence in shutdown.fails(2, *words.split())
    assert daemon.asked == []


@pytest.mark.parametrize("name", ["shutdown", "kill", "pause", "unpause", "start"])
def test_a_slip_in_exclude_spares_everybody(name: str, daemon: FakeDaemon, request: pytest.FixtureRequest) -> None:
    tool: Tool = request.getfixturevalue(name)
    daemon.answers["admin.vm.List"] = ALL
    assert "there is no VM 'maill' to exclude" in tool.fails(3, "--all", "--exclude", "maill")
    assert daemon.heard == ["admin.vm.List dom0"]


@pytest.mark.parametrize(
    ("name", "words", "asked"),
    [
        ("kill", "--all --exclude dom0", "Kill held mail net sleepy starting"),
        ("kill", "a b a", "Kill a b"),
        ("pause", "--all", "Pause mail net"),
        ("pause", "-S mail", "Suspend mail"),
        ("unpause", "--all", "Unpause held"),
        ("unpause", "--all --resume", "Resume sleepy"),
        ("start", "--all --no-guid -q", "Start debian"),
        ("shutdown", "--all", "Shutdown held mail net sleepy starting"),
    ],
)
def test_whom_the_tools_mean(
    name: str, words: str, asked: str, daemon: FakeDaemon, request: pytest.FixtureRequest
) -> None:
    tool: Tool = request.getfixturevalue(name)
    daemon.answers["admin.vm.List"] = ALL
    assert tool.ok(*words.split()) == ""
    calls = [item for item in daemon.asked if item.method != "admin.vm.List"]
    assert " ".join([calls[0].method.rpartition(".")[2], *(item.vm for item in calls)]) == asked


@pytest.mark.parametrize("name", ["kill", "pause", "unpause", "start"])
def test_a_failure_does_not_keep_the_others_from_their_turn(
    name: str, daemon: FakeDaemon, request: pytest.FixtureRequest
) -> None:
    tool: Tool = request.getfixturevalue(name)

    def answer(asked: Asked) -> Reply:
        return StateError("one is in the wrong state") if asked.vm == "one" else ""

    for method in ("admin.vm.Kill", "admin.vm.Pause", "admin.vm.Unpause", "crannog.vm.Start"):
        daemon.answers[method] = answer
    assert tool.fails(5, "one", "two") == "one is in the wrong state"
    assert [asked.vm for asked in daemon.asked] == ["one", "two"]
    daemon.asked.clear()
    assert "dom0 is this host itself" in tool.fails(2, "dom0")
    assert daemon.asked == []


def test_starting(daemon: FakeDaemon, start: Tool, tmp_path: Path) -> None:
    image = tmp_path / "cd.iso"
    image.touch()
    daemon.answers["crannog.vm.Start"] = "0.5\tdisks\n1.5\tguest\n"
    assert start.ok("--cdrom", f"dom0:{image}", "--no-wait", "a") == ""
    assert daemon.heard == [f"crannog.vm.Start+nowait a cdrom:{image}"]
    assert start.ok("-v", "--wait", "a").split() == [
        "a:", "500", "ms", "disks", "a:", "1500", "ms", "guest", "a:", "2000", "ms", "in", "all",
    ]  # fmt: skip
    daemon.answers["crannog.vm.Start"] = VMNotHaltedError("a is Running")
    assert start.ok("--skip-if-running", "a") == ""
    assert start.fails(5, "a") == "a is Running"
    daemon.answers["crannog.vm.Start"] = VMNotFoundError("there is no VM 'a'")
    assert start.fails(3, "--skip-if-running", "a") == "there is no VM 'a'"


@pytest.mark.parametrize(
    ("words", "drive"),
    [
        ("--cdrom {}", "cdrom:{}"),
        ("--hddisk dom0:{}", "hd:{}"),
        ("--drive hd:{}", "hd:{}"),
        ("--drive cdrom:dom0:{}", "cdrom:{}"),
        ("--cdrom image", "cdrom:{}"),
        ("--drive hd:image", "hd:{}"),
    ],
)
def test_drives(
    words: str, drive: str, daemon: FakeDaemon, start: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.touch()
    monkeypatch.chdir(tmp_path)
    start.ok(*words.format(image).split(), "a")
    assert daemon.heard == [f"crannog.vm.Start a {drive.format(image)}"]


def test_devices_are_for_root(daemon: FakeDaemon, start: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    start.ok("--hddisk", "/dev/null", "--allow-device", "a")
    assert daemon.heard == ["crannog.vm.Start+allow-device a hd:/dev/null"]
    assert "is not a file" in start.fails(2, "--hddisk", "/nope", "--allow-device", "a")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "--allow-device is for root" in start.fails(2, "--hddisk", "/dev/null", "--allow-device", "a")
    assert len(daemon.asked) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name the VMs to start, or say --all"),
        ("--wait --no-wait a", "exclude each other"),
        ("--all --cdrom /etc/passwd", "--cdrom is for VMs that are named"),
        ("--all --drive hd:/etc/passwd", "--drive is for VMs that are named"),
        ("--cdrom /nope a", "the image /nope is not a file"),
        ("--hddisk /dev/null a", "the image /dev/null is not a file"),
        ("--hddisk /etc a", "the image /etc is not a file"),
        ("--cdrom /etc/passwd --hddisk /etc/passwd a", "--cdrom and --hddisk exclude each other"),
        ("--hddisk /etc/passwd --drive hd:/etc/passwd a", "--hddisk and --drive exclude each other"),
        ("--drive /etc/passwd a", "--drive takes cdrom:IMAGE or hd:IMAGE, not '/etc/passwd'"),
        ("--drive floppy:/etc/passwd a", "--drive takes cdrom:IMAGE or hd:IMAGE"),
        ("--drive hd:work:/etc/passwd a", "'work:/etc/passwd' is not on this host"),
        ("--cdrom sys-usb:sda a", "'sys-usb:sda' is not on this host"),
    ],
)
def test_wrong_uses_of_start(words: str, sentence: str, start: Tool, daemon: FakeDaemon) -> None:
    assert sentence in start.fails(2, *words.split())
    assert daemon.asked == []
