"""The policy that the daemon keeps, its socket, whoever asks the user, and the log of decisions."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon import decision_log, policy_server
from crannog.daemon.decision_log import DecisionLog
from crannog.daemon.policy import PolicyKeeper, RegistrySystem
from crannog.daemon.policy_server import PolicyServer
from crannog.policy.system import read_system
from tests.fakes import add_vm, new_registry, short_folder, template_and_app

ASKING = "test.Ask * * @anyvm ask default_target=other\ntest.Allow * work other allow notify=yes\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def registry() -> Registry:
    registry = new_registry()
    template, _ = template_and_app(registry)
    add_vm(registry, "AppVM", "other", template)
    return registry


class Place:
    """A policy server with its folder."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder = folder
        self.rules = folder / "policy.d"
        self.rules.mkdir()
        self.keeper = PolicyKeeper(registry, (str(self.rules),))
        self.log = folder / "policy.log"
        self.agent = str(folder / "agent.sock")
        self.server = PolicyServer(self.keeper, str(folder / "policy.sock"), self.agent, DecisionLog(str(self.log)))

    def write(self, text: str, name: str = "30-user.policy") -> None:
        (self.rules / name).write_text(text)

    async def ask(self, *lines: str, end: bytes = b"\n\n") -> str:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "policy.sock"))
        writer.write("\n".join(lines).encode("utf-8") + end)
        writer.write_eof()
        reply = await reader.read()
        writer.close()
        await writer.wait_closed()
        return reply.decode()

    async def call(self, service: str, source: str = "work", target: str = "other", *more: str) -> dict[str, str]:
        lines = (f"source={source}", f"intended_target={target}", f"service_and_arg={service}", *more)
        return dict(line.split("=", 1) for line in (await self.ask(*lines)).splitlines())

    def decisions(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @asynccontextmanager
    async def user(self, answer: bytes | None) -> AsyncIterator[list[bytes]]:
        """Stand in for the program that asks: with None it never answers."""
        heard: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read())
            if answer is None:
                await ended.wait()
            writer.write(answer or b"")
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

        ended = asyncio.Event()
        server = await asyncio.start_unix_server(serve, self.agent)
        yield heard
        ended.set()
        await asyncio.sleep(0.05)
        server.close()
        os.unlink(self.agent)


@pytest.fixture
async def place(folder: Path, registry: Registry) -> AsyncIterator[Place]:
    place = Place(folder, registry)
    await place.server.start()
    yield place
    await place.server.stop()


async def test_what_no_rule_matches_is_denied(place: Place) -> None:
    assert await place.call("test.Unknown") == {"result": "deny"}
    (told,) = place.decisions()
    assert (told["source"], told["target"], told["service"], told["decision"]) == (
        "work",
        "other",
        "test.Unknown",
        "deny",
    )


async def test_an_allowed_call(place: Place, registry: Registry) -> None:
    place.write(ASKING)
    other = registry.find_vm("other")
    assert await place.call("test.Allow+x") == {
        "user": "DEFAULT",
        "result": "allow",
        "target": "other",
        "target_uuid": f"uuid:{other.uuid}",
        "autostart": "True",
        "requested_target": "other",
    }
    (told,) = place.decisions()
    assert told["rule"] == f"{place.rules}/30-user.policy:2"
    assert told["called"] == "other"
    assert told["argument"] == "+x"


async def test_the_policy_that_crannog_brings_comes_last(place: Place) -> None:
    assert (await place.call("qubes.GetDate", target="dom0"))["target"] == "dom0"
    place.write("qubes.GetDate * work dom0 deny\n")
    assert await place.call("qubes.GetDate", target="dom0") == {"result": "deny"}


async def test_changes_are_picked_up(place: Place) -> None:
    for text, result in (("", "deny"), (ASKING, "allow"), (ASKING.replace("allow", "deny"), "deny")):
        place.write(text)
        assert (await place.call("test.Allow"))["result"] == result
    place.write(ASKING, "20-first.policy")
    assert (await place.call("test.Allow"))["result"] == "allow"
    (place.rules / "20-first.policy").unlink()
    assert (await place.call("test.Allow"))["result"] == "deny"


async def test_a_file_that_is_included_counts_too(place: Place) -> None:
    place.write("!include other-rules\n")
    assert (await place.call("test.Allow"))["result"] == "deny"
    place.write(ASKING, "other-rules")
    assert (await place.call("test.Allow"))["result"] == "allow"


async def test_an_error_denies_everything_and_says_where(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write(ASKING)
    place.write("\ntest.Allow work other allow\n", "10-broken.policy")
    assert await place.call("test.Allow") == {"result": "deny"}
    assert await place.call("qubes.GetDate", target="dom0") == {"result": "deny"}
    assert f"{place.rules}/10-broken.policy:2" in caplog.text
    assert "10-broken.policy:2" in str(place.decisions()[0]["reason"])
    (place.rules / "10-broken.policy").unlink()
    assert (await place.call("test.Allow"))["result"] == "allow"


@pytest.mark.parametrize(
    ("answer", "result", "reason"),
    [
        (b"allow:other", "allow", None),
        (b"deny", "deny", "the user said no"),
        (b"", "deny", "the program that asks gave no answer"),
        (b"\n", "deny", "the user said no"),
        (b"allow:nobody", "deny", "not among the targets"),
        (b"allow:" + bytes(4000), "deny", "not among the targets"),
    ],
)
async def test_the_user_decides(place: Place, answer: bytes, result: str, reason: str | None) -> None:
    place.write(ASKING)
    async with place.user(answer) as heard:
        assert (await place.call("test.Ask+x"))["result"] == result
    header, _, question = heard[0].partition(b"\0")
    assert header == b"policy.Ask dom0 name dom0"
    told = json.loads(question)
    assert (told["source"], told["service"], told["argument"]) == ("work", "test.Ask", "+x")
    assert (told["targets"], told["default_target"]) == (["debian", "other"], "other")
    assert set(told["icons"]) == {"work", "debian", "other"}
    asked, answered = place.decisions()
    assert (asked["decision"], answered["decision"]) == ("ask", result)
    assert reason is None or reason in str(answered["reason"])


async def test_nobody_to_ask_is_no(place: Place) -> None:
    place.write(ASKING)
    assert await place.call("test.Ask") == {"result": "deny"}
    assert "run 'crannog policy agent'" in str(place.decisions()[1]["reason"])


async def test_no_answer_in_time_is_no(place: Place) -> None:
    place.write(ASKING)
    place.server.ask_seconds = 0.2
    async with place.user(None):
        assert await place.call("test.Ask") == {"result": "deny"}
    assert "nobody answered" in str(place.decisions()[1]["reason"])


async def test_a_user_cannot_be_buried_in_questions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_server, "ASKED_AT_ONCE", 3)
    place.write(ASKING)
    place.server.ask_seconds = 0.5
    async with place.user(None) as heard:
        await asyncio.gather(*[place.call("test.Ask") for _ in range(10)])
        assert len([question for question in heard if question.startswith(b"policy.Ask ")]) == 3


async def test_just_evaluate_asks_nobody(place: Place) -> None:
    place.write(ASKING)
    async with place.user(b"allow:other") as heard:
        reply = await place.ask(
            "source=work", "intended_target=other", "service_and_arg=test.Allow", "just_evaluate=yes"
        )
        assert reply == "result=allow"
        reply = await place.ask("source=work", "intended_target=other", "service_and_arg=test.Ask", "just_evaluate=yes")
        assert reply == "result=deny"
        assert heard == []


async def test_the_user_is_told_where_a_rule_wants_that(place: Place) -> None:
    place.write(ASKING)
    async with place.user(b"") as heard:
        await place.call("test.Allow")
        for _ in range(500):
            if heard:
                break
            await asyncio.sleep(0.01)
    header, _, message = heard[0].partition(b"\0")
    assert header == b"policy.Notify dom0 name dom0"
    assert json.loads(message)["resolution"] == "allow"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["source=work"],
        ["source=work", "intended_target=other", "service_and_arg=x", "odd=1"],
        ["source=work", "source=work", "intended_target=other", "service_and_arg=x"],
        ["source=work", "intended_target=other", "service_and_arg=x y"],
        ["source=wörk", "intended_target=other", "service_and_arg=x"],
    ],
)
async def test_what_is_no_request_gets_no_answer(place: Place, lines: list[str]) -> None:
    assert await place.ask(*lines) == ""
    assert not place.log.exists()


async def test_a_request_without_an_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_server, "REQUEST_SECONDS", 0.2)
    assert await place.ask("source=work", end=b"\n") == ""
    assert await place.ask("x" * 400_000, end=b"") == ""
    assert (await place.call("qubes.GetDate", target="dom0"))["result"] == "allow"


async def test_the_log_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_BYTES", 2000)
    for _ in range(30):
        await place.call("test.Unknown")
    assert place.log.stat().st_size <= 2000
    assert Path(f"{place.log}.1").stat().st_size <= 2000
    assert len(place.decisions()) > 2


async def test_a_log_that_cannot_be_written_stops_nobody(place: Place) -> None:
    place.log.mkdir()
    assert (await place.call("qubes.GetDate", target="dom0"))["result"] == "allow"


async def test_others_cannot_reach_the_socket(place: Place) -> None:
    assert (place.folder / "policy.sock").stat().st_mode & 0o777 == 0o600


def test_vms_are_seen_as_the_admin_api_tells_of_them(registry: Registry) -> None:
    from crannog.api.internal_methods import _describe

    told = read_system({"domains": {vm.name: _describe(vm) for vm in registry}})
    seen = RegistrySystem(registry)
    for vm in registry:
        one, other = told.find(vm.name), seen.find(vm.name)
        assert one
        assert other
        assert {**_fields(one), "label": ""} == {**_fields(other), "label": ""}
        assert seen.find(f"uuid:{vm.uuid}") == other
    assert {vm.name for vm in seen} == {vm.name for vm in told}
    assert seen.find("nobody") is seen.find("") is seen.find(None) is seen.find("uuid:0") is None


def _fields(vm: object) -> dict[str, object]:
    return {name: getattr(vm, name) for name in vm.__slots__}  # type: ignore[attr-defined]


def test_the_admin_api_follows_the_policy(folder: Path, registry: Registry) -> None:
    place = Place(folder, registry)
    work, other = registry.find_vm("work"), registry.find_vm("other")
    assert isinstance(work, LocalVM)
    assert not place.keeper.permits(work, "admin.vm.List", "", other)
    place.write("admin.vm.List * work other allow\nadmin.vm.Start * work other ask\n")
    assert place.keeper.permits(work, "admin.vm.List", "", other)
    assert not place.keeper.permits(other, "admin.vm.List", "", work)
    assert not place.keeper.permits(work, "admin.vm.Start", "", other)
