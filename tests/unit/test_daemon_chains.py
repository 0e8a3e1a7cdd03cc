"""Netvms that start before their clients: once, in order, and what is told when they cannot."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from crannog.core.plan import StartNetvm
from crannog.core.startup import StartRequest
from crannog.errors import HypervisorError, InUseError, StartError, StorageError
from tests.fakes import DomainInfo, DomainState
from tests.unit.api_world import until
from tests.unit.life_world import QUIETLY, Gate, Life, begin, failing, living, soon

START = ["domain-pre-start", "domain-pre-spawn", "domain-spawn", "domain-pre-unpaused", "domain-unpaused",
         "domain-start"]  # fmt: skip


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


def running(life: Life) -> set[str]:
    return {info.name for info in life.inside.hypervisor.domain_states.values()}


async def test_a_chain_starts_from_its_far_end(life: Life) -> None:
    mail, *_ = await life.add("mail", "fw", "net")
    await life.power.start(mail, QUIETLY)
    assert [spec.name for spec in life.inside.hypervisor.specs] == ["net", "fw", "mail"]
    for name in ("mail", "fw", "net"):
        assert life.told_of(name) == START
    words = [" ".join(line.split()[:2]) for line in life.told]
    assert words[0] == "mail domain-pre-start"
    assert words.index("net domain-start") < words.index("fw domain-pre-start")
    assert words.index("fw domain-start") < words.index("mail domain-pre-spawn")


async def test_what_runs_is_not_started(life: Life) -> None:
    mail, _fw, net = await life.add("mail", "fw", "net")
    await life.run(net)
    stages = await life.power.start(mail, QUIETLY)
    assert [stage for stage, _ in stages].count("netvm runs") == 1
    assert life.told_of("net") == []
    assert running(life) == {"mail", "fw", "net"}
    await life.power.kill(mail)
    await life.power.kill(net)
    life.told.clear()
    await life.power.start(mail, QUIETLY)
    assert (life.told_of("fw"), life.told_of("net")) == ([], [])


async def test_two_clients_start_their_netvm_once(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    (bank,) = await life.add("bank")
    bank.set("netvm", net)
    gate = Gate(life.inside.hypervisor.create_paused)
    monkeypatch.setattr(life.inside.hypervisor, "create_paused", gate)
    starts = [begin(life.power.start(vm, QUIETLY)) for vm in (mail, bank)]
    await gate.reached.wait()
    await asyncio.sleep(0.02)
    assert (running(life), net.power_state) == (set(), "Transient")
    gate.opened.set()
    await soon(asyncio.gather(*starts))
    assert life.told_of("net") == START
    assert running(life) == {"mail", "bank", "net"}


async def test_a_netvm_that_somebody_starts_is_waited_for(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    first = begin(life.power.start(net, QUIETLY))
    await gate.reached.wait()
    second = begin(life.power.start(mail, QUIETLY))
    await asyncio.sleep(0.02)
    assert life.told_of("mail") == ["domain-pre-start"]
    gate.opened.set()
    await soon(asyncio.gather(first, second))
    assert life.told_of("net") == START


async def test_a_netvm_that_halts_is_started_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    await life.run(net)
    gate = Gate(life.inside.hypervisor.press_power_button)
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", gate)
    stopping = begin(life.power.shutdown(net, force=False, wait=True))
    await gate.reached.wait()
    starting = begin(life.power.start(mail, QUIETLY))
    await asyncio.sleep(0.02)
    gate.opened.set()
    await soon(asyncio.gather(stopping, starting))
    assert running(life) == {"mail", "net"}


async def test_a_netvm_that_is_just_killed_is_started_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    await life.run(net)
    gate = Gate(life.inside.hypervisor.destroy)
    monkeypatch.setattr(life.inside.hypervisor, "destroy", gate)
    killing = begin(life.power.kill(net))
    await gate.reached.wait()
    step = StartNetvm(net.uuid, "net", mail.uuid)
    ensuring = begin(life.inside.lifecycle._runner.run("mail", (step,)))
    await asyncio.sleep(0.02)
    assert not ensuring.done()
    gate.opened.set()
    await soon(asyncio.gather(killing, ensuring))
    assert running(life) == {"net"}


@pytest.mark.parametrize(
    ("part", "method", "error", "reason"),
    [
        ("pool", "start", StorageError("no space"), "no space"),
        ("hypervisor", "create_paused", HypervisorError("no processor"), "no processor"),
        ("hypervisor", "resume", HypervisorError("no"), "its processors could not be let run: no"),
    ],
)
async def test_a_netvm_that_cannot_be_started(
    life: Life, monkeypatch: pytest.MonkeyPatch, part: str, method: str, error: Exception, reason: str
) -> None:
    mail, *_ = await life.add("mail", "fw", "net")
    monkeypatch.setattr(getattr(life.inside, part), method, failing(error))
    with pytest.raises(StartError) as caught:
        await life.power.start(mail, QUIETLY)
    assert type(caught.value) is StartError
    assert str(caught.value) == f"mail was not started: its netvm net could not be started: {reason}"
    assert life.told_of("net")[-1] == "domain-start-failed"
    assert life.told_of("fw") == []
    assert life.told_of("mail") == ["domain-pre-start", "domain-start-failed"]
    assert life.told[-1] == f"mail domain-start-failed reason=its netvm net could not be started: {reason}"
    await life.is_gone()


async def test_a_netvm_that_is_refused_says_why(life: Life) -> None:
    mail, net = await life.add("mail", "net")
    net.set("kernel", "")
    with pytest.raises(StartError, match="mail was not started: its netvm net could not be started: net has no kernel"):
        await life.power.start(mail, QUIETLY)
    life.inside.lifecycle.machines.busy[net.uuid] = "its volume is being imported"
    with pytest.raises(StartError, match="net cannot be started: its volume is being imported"):
        await life.power.start(mail, QUIETLY)


async def test_a_netvm_for_which_there_is_no_memory(life: Life) -> None:
    mail, net = await life.add("mail", "net")
    net.set("memory", 2**20)
    with pytest.raises(StartError, match="its netvm net could not be started: net needs 1048576 MiB"):
        await life.power.start(mail, QUIETLY)
    await life.is_gone()


async def test_both_clients_hear_why_their_netvm_failed(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    (bank,) = await life.add("bank")
    bank.set("netvm", net)
    monkeypatch.setattr(life.inside.hypervisor, "failing", {"create_paused"})
    ends = await soon(asyncio.gather(*(life.power.start(vm, QUIETLY) for vm in (mail, bank)), return_exceptions=True))
    assert [str(end).split(":")[0] for end in ends] == ["mail was not started", "bank was not started"]
    assert life.told_of("net").count("domain-start-failed") == 1
    await life.is_gone()


async def test_a_netvm_stays_when_its_client_fails(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use it by now."""
    mail, _net = await life.add("mail", "net")
    create = life.inside.hypervisor.create_paused

    async def refuse_mail(spec: object) -> DomainInfo:
        if getattr(spec, "name", "") == "mail":
            raise HypervisorError("no")
        return await create(spec)  # type: ignore[arg-type]

    monkeypatch.setattr(life.inside.hypervisor, "create_paused", refuse_mail)
    with pytest.raises(HypervisorError, match="mail was not started: no"):
        await life.power.start(mail, QUIETLY)
    assert running(life) == {"net"}


async def test_a_client_that_is_killed_while_it_waits_leaves_its_netvm_alone(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail, net = await life.add("mail", "net")
    gate = Gate(life.inside.hypervisor.create_paused)
    monkeypatch.setattr(life.inside.hypervisor, "create_paused", gate)
    starting = begin(life.power.start(mail, QUIETLY))
    await gate.reached.wait()
    await soon(life.power.kill(mail))
    with pytest.raises(StartError, match="mail was killed while it started"):
        await starting
    gate.opened.set()
    await until(lambda: net.power_state == "Running")
    assert life.told_of("mail") == ["domain-pre-start", "domain-start-failed"]


async def test_a_netvm_that_is_killed_while_a_client_waits(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, net = await life.add("mail", "net")
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    starting = begin(life.power.start(mail, QUIETLY))
    await gate.reached.wait()
    await soon(life.power.kill(net))
    with pytest.raises(StartError, match="its netvm net could not be started: net was killed while it started"):
        await soon(starting)
    await life.is_gone()


async def test_a_netvm_is_in_use_from_the_moment_in_which_a_client_starts(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail, net = await life.add("mail", "net")
    await life.run(net)
    gate = Gate(life.inside.pool.start)
    monkeypatch.setattr(life.inside.pool, "start", gate)
    starting = begin(life.power.start(mail, QUIETLY))
    await gate.reached.wait()
    with pytest.raises(InUseError, match="net was not shut down: it is the netvm of mail"):
        await life.power.shutdown(net, force=False, wait=False)
    gate.opened.set()
    await soon(starting)


async def test_settings_that_change_in_between_do_not_have_two_starts_wait_for_each_other(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Net waits for its turn; by then it gets its network from mail, which waits for net."""
    mail, net = await life.add("mail", "net")
    async with life.inside.machines.lock(net.uuid):
        starting = begin(life.power.start(mail, QUIETLY))
        await until(lambda: net.uuid in life.inside.lifecycle._starts)
        mail.values["netvm"] = None
        mail.values["provides_network"] = True
        net.values["netvm"] = mail
    with pytest.raises(StartError, match="the settings of networks have just changed"):
        await soon(starting)
    await life.is_gone()


async def test_a_netvm_that_was_removed_in_between(life: Life) -> None:
    step = StartNetvm("00000000-0000-4000-8000-000000000000", "net", life.work.uuid)
    with pytest.raises(StartError, match="its netvm net is gone"):
        await life.inside.lifecycle._runner.run("work", (step,))


async def test_a_dry_run_shows_the_chain_and_starts_nobody(life: Life) -> None:
    mail, *_ = await life.add("mail", "fw", "net")
    lines = [step.describe() for step in await life.power.plan(mail, QUIETLY)]
    assert lines[:2] == [f"start {name} before it, which leads to its network" for name in ("net", "fw")]
    await life.is_gone()


async def test_the_agent_of_a_netvm_is_waited_for_if_it_has_one(life: Life) -> None:
    mail, net = await life.add("mail", "net")
    net.features["qrexec"] = "1"
    starting = begin(life.power.start(mail, QUIETLY))
    await until(lambda: "domain-unpaused" in life.told_of("net"))
    await asyncio.sleep(0.02)
    assert life.told_of("mail") == ["domain-pre-start"]
    life.hear(DomainState.ABSENT, net)
    with pytest.raises(StartError, match="its netvm net could not be started: it stopped by itself before its agent"):
        await soon(starting)
    await life.is_gone()


async def test_a_daemon_that_ends_undoes_the_whole_chain(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    mail, *_ = await life.add("mail", "fw", "net")
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    starting = begin(life.power.start(mail, StartRequest()))
    await gate.reached.wait()
    await soon(life.inside.lifecycle.abandon_starts())
    with pytest.raises(StartError):
        await starting
    await life.is_gone()
