"""Exact bytes of the methods about policy (qrexec specification, section 6)."""

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from crannog.adapters.policy.shelf import FolderShelf
from crannog.api.table import METHODS
from crannog.config import Paths
from crannog.editing.policies import Policies, Sort
from crannog.errors import NotFoundError, OfflineError, ProtocolError, StorageError, ValueRefusedError
from crannog.offline.client import OfflineClient
from crannog.policy.loader import DEFAULTS
from crannog.rpc.errand import GuestErrand
from crannog.rpc.services import Caller
from crannog.rpc.triggers import Trigger
from tests.unit.api_world import ask
from tests.unit.bytes_world import (
    EXPECTED_ARGUMENT,
    EXPECTED_PAYLOAD,
    ONLY_DOM0,
    UNEXPECTED_ARGUMENT,
    UNEXPECTED_PAYLOAD,
    Talk,
    bytes_world,
    check,
    denied,
    error,
    ok,
    protocol,
    refused,
    say,
    talk,
)

RULES = "test.Ask * work @anyvm ask\ntest.Allow * * @anyvm allow\n"
OTHER = "test.Allow * work @anyvm allow\n"
INCLUDE = "work @anyvm allow\n"
BROKEN = "# one\ntest.Allow * work @anyvm allow\ntest.Allow * work permit\n"
OWN = sorted(name.removesuffix(".policy") for name in os.listdir(DEFAULTS) if name.endswith(".policy"))
NO_TOKEN = protocol("the payload does not begin with a token: 'new', 'any', or 'sha256:' and 64 digits")
NO_LINE = protocol("the payload is not a token, the end of its line, and the new content")
FILES = "<HOME>/policy.d"
FIVE_WORDS = "a rule has five words and then options, here are 4; write SERVICE +ARGUMENT SOURCE TARGET allow|ask|deny"


def token(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def content(text: str) -> bytes:
    return ok(f"{token(text)}\n{text}")


def payload(head: str, text: str = "") -> bytes:
    return f"{head}\n{text}".encode()


def listing(*names: str) -> bytes:
    return ok("".join(f"{name}\n" for name in sorted(names)))


def absent(what: str, method: str) -> bytes:
    return error("QubesException", "NotFoundError", f"there is no {what}; {method} lists them")


def changed_since(what: str) -> bytes:
    return refused(f"{what} is not as it was when its token was made; read it again")


TALKS = (
    talk(
        "policy files",
        say("policy.List+ dom0", listing(*OWN)),
        say("policy.Replace+30-user dom0", ok(), payload("new", RULES)),
        say("policy.List+ dom0", listing("30-user", *OWN)),
        say("policy.Get+30-user dom0", content(RULES)),
        say("policy.Replace+30-user dom0", ok(), payload(token(RULES), OTHER)),
        say("policy.Get+30-user dom0", content(OTHER)),
        say("policy.Replace+30-user dom0", ok(), payload("any", "# 50% \u00e4\n")),
        say("policy.Get+30-user dom0", content("# 50% \u00e4\n")),
        say("policy.Replace+30-user dom0", ok(), payload("any")),
        say("policy.Get+30-user dom0", content("")),
        say("policy.Remove+30-user dom0", ok(), token("").encode()),
        say("policy.List+ dom0", listing(*OWN)),
        say("policy.Replace+30-user dom0", ok(), payload("any", RULES)),
        say("policy.Remove+30-user dom0", ok(), b"any"),
        say("policy.Get+30-user dom0", absent("policy file 30-user", "policy.List")),
    ),
    talk(
        "policy files that somebody else has changed",
        say("policy.Replace+30-user dom0", ok(), payload("new", RULES)),
        say("policy.Replace+30-user dom0",
            refused("policy file 30-user is there already; read it, and hand in its token"), payload("new", OTHER)),
        say("policy.Replace+30-user dom0", changed_since("policy file 30-user"), payload(token(OTHER), OTHER)),
        say("policy.Remove+30-user dom0", changed_since("policy file 30-user"), token(OTHER).encode()),
        say("policy.Get+30-user dom0", content(RULES)),
        say("policy.Replace+other dom0", changed_since("policy file other"), payload(token(RULES), OTHER)),
        say("policy.Remove+other dom0", absent("policy file other", "policy.List"), b"any"),
    ),
    talk(
        "policy that would have problems",
        say("policy.Replace+30-user dom0",
            refused(f"policy file 30-user was not changed: {FILES}/30-user.policy:3: {FIVE_WORDS}"),
            payload("new", BROKEN)),
        say("policy.List+ dom0", listing(*OWN)),
        say("policy.Replace+30-user dom0", refused("30-user was not changed: line 2 is not UTF-8"), b"new\n#\n\xff\n"),
        say("policy.Replace+30-user dom0",
            refused("30-user was not changed: line 1 has a carriage return; end lines with \\n alone"),
            b"new\n# a\r\n"),
        say("policy.Replace+30-user dom0",
            refused(f"policy file 30-user was not changed: {FILES}/30-user.policy:1: there is no file "
                    f"{FILES}/include/x; make it, or remove this line"),
            payload("new", "!include include/x\n")),
        say("policy.include.Replace+x dom0", ok(), payload("new", OTHER)),
        say("policy.Replace+30-user dom0", ok(), payload("new", "!include include/x\n")),
        say("policy.include.Replace+x dom0",
            refused(f"include x was not changed: {FILES}/include/x:3: {FIVE_WORDS}"), payload("any", BROKEN)),
        say("policy.include.Remove+x dom0",
            refused(f"include x was not removed: {FILES}/30-user.policy:1: there is no file {FILES}/include/x; "
                    "make it, or remove this line"), b"any"),
        say("policy.include.Get+x dom0", content(OTHER)),
    ),
    talk(
        "policy files that Crannog brings",
        say("policy.Get+90-default dom0", content(Path(DEFAULTS, "90-default.policy").read_text(encoding="utf-8"))),
        say("policy.Remove+90-default dom0",
            refused("policy file 90-default is one that Crannog brings and cannot be removed; replace it by an "
                    "empty one"), b"any"),
        say("policy.Replace+90-default dom0", ok(), payload("any", OTHER)),
        say("policy.Get+90-default dom0", content(OTHER)),
        say("policy.List+ dom0", listing(*OWN)),
        say("policy.Remove+90-default dom0", ok(), token(OTHER).encode()),
        say("policy.Get+90-default dom0", content(Path(DEFAULTS, "90-default.policy").read_text(encoding="utf-8"))),
    ),
    talk(
        "files that are included",
        say("policy.include.List+ dom0", ok()),
        say("policy.include.Replace+admin-local+ro dom0", ok(), payload("new", INCLUDE)),
        say("policy.include.List+ dom0", ok("admin-local+ro\n")),
        say("policy.include.Get+admin-local+ro dom0", content(INCLUDE)),
        say("policy.include.Remove+admin-local+ro dom0", ok(), token(INCLUDE).encode() + b"\n"),
        say("policy.include.Get+admin-local+ro dom0", absent("include admin-local+ro", "policy.include.List")),
    ),
    talk(
        "where a service has rules",
        say("policy.include.Replace+x dom0", ok(), payload("new", INCLUDE)),
        say("policy.Replace+30-user dom0", ok(), payload("new", RULES + "!include-service test.Allow * include/x\n")),
        say("policy.GetFiles+test.Allow dom0", ok("30-user\ninclude/x\n")),
        say("policy.GetFiles+test.Ask dom0", ok("30-user\n")),
        say("policy.GetFiles+test.None dom0", ok()),
        say("policy.GetFiles+policy.List dom0", ok("90-policy-admin\n")),
    ),
    talk(
        "refused names and payloads",
        say("policy.Get+../store dom0",
            refused("'../store' is no name of policy files; they are made of 0-9 a-z _ . -")),
        say("policy.Get+A dom0", refused("'A' is no name of policy files; they are made of 0-9 a-z _ . -")),
        say("policy.Replace+.x dom0", refused("'.x' is no name of policy files; they are made of 0-9 a-z _ . -"),
            payload("new")),
        say("policy.include.Get+a/b dom0",
            refused("'a/b' is no name of includes; they are made of 0-9 A-Z a-z _ . + -")),
        say("policy.Replace+30-user dom0", NO_LINE, b"new"),
        say("policy.Replace+30-user dom0", NO_TOKEN, payload("old", RULES)),
        say("policy.Remove+30-user dom0", NO_TOKEN, b"sha256:1"),
        say("policy.Get+ dom0", EXPECTED_ARGUMENT),
        say("policy.List+x dom0", UNEXPECTED_ARGUMENT),
        say("policy.List+ dom0", UNEXPECTED_PAYLOAD, b"x"),
        say("policy.Remove+30-user dom0", EXPECTED_PAYLOAD),
        say("policy.Get+30-user work", ONLY_DOM0),
    ),
    talk(
        "other callers than dom0, although the policy would let them",
        say("policy.Replace+30-user dom0", ok(), payload("new", "* * * * allow\n")),
        *(
            say(f"{method}{argument} work name dom0",
                denied(f"{method} is for dom0 alone; work may not call it"), b"any\n" if is_changing else b"")
            for method, argument, is_changing in (
                ("policy.List", "+", False), ("policy.Get", "+30-user", False), ("policy.Replace", "+30-user", True),
                ("policy.Remove", "+30-user", True), ("policy.GetFiles", "+x", False),
                ("policy.include.List", "+", False), ("policy.include.Get", "+x", False),
                ("policy.include.Replace", "+x", True), ("policy.include.Remove", "+x", True),
            )
        ),
        say("policy.Get+30-user dom0", content("* * * * allow\n")),
    ),
)  # fmt: skip

ALLOW, DENY = b"result=allow\n", b"result=deny\n"
PLAIN = (
    talk(
        "decisions for others",
        say("policy.Replace+30-user dom0", ok(), payload("new", RULES)),
        say("policy.EvalSimple+test.Allow work name dom0", ALLOW, b"dvm\0work"),
        say("policy.EvalSimple+test.Allow+x work name dom0", ALLOW, b"dvm\0sys-net"),
        say("policy.EvalSimple+test.Ask work name dom0", ALLOW, b"work\0dvm"),
        say("policy.EvalSimple+test.Ask work name dom0", DENY, b"dvm\0work"),
        say("policy.EvalSimple+test.None work name dom0", DENY, b"dvm\0work"),
        say("policy.EvalSimple+test.Allow work name dom0", DENY, b"nobody\0work"),
        say("policy.EvalSimple+test.Allow work name dom0", b"", b"dvm work"),
        say("policy.EvalSimple+test.Allow work name dom0", b"", b"\0work"),
        say("policy.EvalSimple+test.Allow work name dom0", b"", b"d" * 32 + b"\0work"),
        say("policy.EvalSimple+test.Allow work name dom0", b"", b"dvm\0" + b"w" * 9000),
        say("policy.EvalSimple+a/b work name dom0", b"", b"dvm\0work"),
        say("policy.EvalSimple+ work name dom0", b"", b"dvm\0work"),
        say("policy.EvalSimple+test.Allow work name dom0", b""),
        say("policy.EvalSimple+test.Allow work name work", b"", b"dvm\0work"),
    ),
    talk(
        "decisions for who shows windows",
        say("policy.Replace+30-user dom0", ok(), payload("new", RULES)),
        say("policy.EvalGUI+test.Allow sys-net name dom0", b"", b"work\0dvm"),
        say("admin.vm.tag.Set+guivm-sys-net work", ok()),
        say("policy.EvalGUI+test.Allow sys-net name dom0", b"", b"work\0dvm"),
        say("admin.vm.tag.Set+guivm-sys-net dvm", ok()),
        say("policy.EvalGUI+test.Allow sys-net name dom0", ALLOW, b"work\0dvm"),
        say("policy.EvalGUI+test.Ask sys-net name dom0", DENY, b"dvm\0work"),
        say("policy.EvalGUI+test.Allow work name dom0", b"", b"work\0dvm"),
        say("policy.EvalGUI+test.Allow sys-net name dom0", b"", b"work\0@dispvm"),
    ),
)


@pytest.mark.parametrize("spoken", [*TALKS, *PLAIN], ids=str)
async def test_exact_replies(spoken: Talk) -> None:
    await check(spoken)


async def test_the_public_socket_does_not_serve_what_guests_ask() -> None:
    async with bytes_world() as world:
        path = world.inside.paths.daemon_socket
        assert await ask(path, b"policy.EvalSimple+test.Allow work name dom0\0dvm\0work") == b""


async def test_a_problem_that_is_there_already_can_be_put_right_a_file_at_a_time() -> None:
    async with bytes_world() as world:
        folder = Path(world.inside.paths.home, "policy.d")
        folder.mkdir()
        for name in ("10-a", "20-b"):
            (folder / f"{name}.policy").write_text(BROKEN)
        await world.have(say("policy.GetFiles+test.Allow dom0", refused(
            f"the policy denies everything, because of {FILES}/10-a.policy:3: {FIVE_WORDS}")))  # fmt: skip
        await world.have(say("policy.Replace+10-a dom0", ok(), payload(token(BROKEN), RULES)))
        await world.have(say("policy.Remove+20-b dom0", ok(), payload(token(BROKEN)).removesuffix(b"\n")))
        await world.have(say("policy.GetFiles+test.Allow dom0", ok("10-a\n")))


async def test_rights_stay_and_nothing_is_left_beside_a_file() -> None:
    async with bytes_world() as world:
        folder = Path(world.inside.paths.home, "policy.d")
        await world.have(say("policy.Replace+30-user dom0", ok(), payload("new", RULES)))
        file = folder / "30-user.policy"
        assert stat.S_IMODE(file.stat().st_mode) & 0o137 == 0
        file.chmod(0o604)
        await world.have(say("policy.Replace+30-user dom0", ok(), payload("any", OTHER)))
        assert stat.S_IMODE(file.stat().st_mode) == 0o604
        assert os.listdir(folder) == ["30-user.policy"]


async def test_a_file_that_cannot_be_written_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bytes_world() as world:
        folder = Path(world.inside.paths.home, "policy.d")
        await world.have(say("policy.Replace+30-user dom0", ok(), payload("new", RULES)))

        def fail(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            await world.have(say("policy.Replace+30-user dom0", error(
                "StoragePoolException", "StorageError", f"the policy file {FILES}/30-user.policy cannot be written: "
                "No space left on device; see to its folder"), payload("any", OTHER)))  # fmt: skip
        await world.have(say("policy.Get+30-user dom0", content(RULES)))
        assert os.listdir(folder) == ["30-user.policy"]


async def test_what_is_decided_follows_a_change_at_once() -> None:
    async with bytes_world() as world:
        path = world.inside.paths.misc_socket
        for text, reply in ((OTHER, ALLOW), (OTHER.replace("allow", "deny"), DENY), (OTHER, ALLOW)):
            await world.have(say("policy.Replace+30-user dom0", ok(), payload("any", text)))
            asked = [ask(path, b"policy.EvalSimple+test.Allow+ dvm name dom0\0work\0dvm") for _ in range(5)]
            assert set(await asyncio.gather(*asked)) == {reply}


# -- beside the socket


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_of_two_folders_the_file_that_counts_is_changed_and_new_ones_come_into_the_one_that_lasts(
    tmp_path: Path,
) -> None:
    run, etc = tmp_path / "run", tmp_path / "etc"
    policies = Policies(FolderShelf(), (str(run), str(etc)))
    policies.replace(Sort.POLICY, "30-new", "new", RULES.encode())
    assert (etc / "30-new.policy").read_text() == RULES
    assert not run.exists()
    write(run / "30-new.policy", OTHER)
    assert policies.read(Sort.POLICY, "30-new") == (token(OTHER), OTHER.encode())
    policies.replace(Sort.POLICY, "30-new", token(OTHER), b"# nothing\n")
    assert ((run / "30-new.policy").read_text(), (etc / "30-new.policy").read_text()) == ("# nothing\n", RULES)
    policies.remove(Sort.POLICY, "30-new", "any")
    assert policies.read(Sort.POLICY, "30-new") == (token(RULES), RULES.encode())


def test_what_comes_to_count_when_a_file_goes_may_be_what_has_the_problem(tmp_path: Path) -> None:
    run, etc = tmp_path / "run", tmp_path / "etc"
    write(run / "30-user.policy", RULES)
    write(etc / "30-user.policy", BROKEN)
    policies = Policies(FolderShelf(), (str(run), str(etc)))
    with pytest.raises(ValueRefusedError, match=f"30-user was not removed: {etc}/30-user.policy:3: "):
        policies.remove(Sort.POLICY, "30-user", "any")
    assert (run / "30-user.policy").read_text() == RULES


def test_what_a_killed_writer_left_is_neither_policy_nor_in_the_way(tmp_path: Path) -> None:
    policies = Policies(FolderShelf(), (str(tmp_path),))
    for sort, name, file in ((Sort.POLICY, "30-user", "30-user.policy"), (Sort.INCLUDE, "x", "include/x")):
        left = (tmp_path / file).with_name(f".{Path(file).name}.new")
        write(left, BROKEN * 100)
        assert name not in policies.names(sort)
        policies.replace(sort, name, "new", OTHER.encode())
        assert (tmp_path / file).read_text() == OTHER
        assert not left.exists()
    policies.replace(Sort.INCLUDE, "x.new", "new", b"# another\n")
    policies.replace(Sort.INCLUDE, "x", "any", b"# changed\n")
    assert policies.read(Sort.INCLUDE, "x.new")[1] == b"# another\n"


def test_files_that_cannot_be_read_are_no_reason_to_write_over_them(tmp_path: Path) -> None:
    (tmp_path / "30-user.policy").mkdir()
    policies = Policies(FolderShelf(), (str(tmp_path),))
    for token_ in ("new", "any"):
        with pytest.raises(StorageError, match="cannot be read: Is a directory"):
            policies.replace(Sort.POLICY, "30-user", token_, RULES.encode())


def test_a_pipe_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "30-user.policy")
    assert Policies(FolderShelf(), (str(tmp_path),)).read(Sort.POLICY, "30-user") == (token(""), b"")


def test_offline_policy_is_edited_but_nobody_decides(tmp_path: Path) -> None:
    client = OfflineClient(Paths(str(tmp_path / "home"), str(tmp_path / "cache")))
    try:
        client.call("policy.Replace", argument="30-user", payload=payload("new", RULES))
        assert client.call("policy.List").decode().split() == ["30-user", *OWN]
        with pytest.raises(OfflineError, match="use 'crannog policy explain'"):
            client.call("policy.EvalSimple", argument="test.Allow", payload=b"work\0dvm")
        with pytest.raises(ProtocolError, match="no such method"):
            client.call("policy.Frobnicate")
    finally:
        client.close()


def test_a_guest_reaches_the_decisions_and_not_the_files(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    errand = GuestErrand("work", paths, Trigger(b"1", "dom0", "policy.EvalSimple+test.Allow"))
    for name in ("policy.EvalSimple", "policy.EvalGUI"):
        assert errand._find(Caller("work", f"{name}+test.Allow", "dom0")).path == paths.misc_socket
    for name in METHODS:
        if name.startswith("policy.") and ".Eval" not in name:
            with pytest.raises(NotFoundError):
                errand._find(Caller("work", f"{name}+", "dom0"))
