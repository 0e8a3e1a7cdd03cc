"""What a decision of the RPC policy costs: with 500 rules, as they grow, and with many VMs. Nothing is read or written.

The target for a decision is a time: a call waits for it. The reference with 5 rules is what is paid for the request
itself: who calls, and what is meant by the target.
"""

import gc
import statistics
import time
from collections.abc import Callable

from benchmarks.harness import MIN_RUNS, Figure, Row
from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.graph import graph
from crannog.policy.loader import load_text
from crannog.policy.policy import Policy
from crannog.policy.system import SystemInfo, VMInfo

DECISIONS = 2000
"""Decisions a run."""

DECIDE, ASK, LOAD, GRAPH = 0.0002, 0.010, 0.050, 2.0
"""Targets in seconds: a decision, a question among 100 VMs, reading 500 rules, the graph of 100 VMs."""

GROWTH = 1.5
"""A decision among 5,000 rules of 500 services over one among 500 rules of 50: rules of other services cost nothing."""


def build_system(count: int) -> SystemInfo:
    """Return dom0 and `count` VMs with a few tags each."""
    vms = [VMInfo("dom0", "00000000-0000-0000-0000-000000000000", "AdminVM", power_state="Running")]
    for number in range(1, count):
        tags = frozenset({"created-by-dom0", "guivm-dom0", "audiovm-dom0", f"group-{number % 10}"})
        identity = f"00000000-0000-0000-0000-{number:012x}"
        vms.append(VMInfo(f"vm-{number:04}", identity, "AppVM", tags, default_dispvm="dvm"))
    vms.append(VMInfo("dvm", "00000000-0000-0000-0000-ffffffffffff", "AppVM", template_for_dispvms=True))
    return SystemInfo(vms)


def write_rules(service: str, count: int) -> list[str]:
    """Return rules of one service that do not match the measured calls, but for the last."""
    kinds = (
        "{0} +arg-{1} @anyvm @anyvm deny",
        "{0} * other-{1} @anyvm allow",
        "{0} * @tag:none-{1} @anyvm ask",
        "{0} * @anyvm other-{1} deny",
        "{0} * vm-0001 @tag:none-{1} allow target=vm-0002",
    )
    rules = [kinds[number % len(kinds)].format(service, number) for number in range(count - 1)]
    return [*rules, f"{service} * @anyvm @anyvm allow"]


def build_policy(services: int, rules: int) -> Policy:
    """Return a policy of that many rules for each of that many services."""
    lines = [line for number in range(services) for line in write_rules(f"test.S{number}", rules)]
    policy = load_text("\n".join(lines))
    if policy.problems or len(policy.rules) != services * rules:
        raise RuntimeError(f"the policy of the benchmark is wrong: {policy.problems[:1]}")
    return policy


def measure_each(runs: int, count: int, action: Callable[[], object], unit: str = "us") -> Figure:
    """Return how long one of `count` calls takes."""
    times = []
    for _ in range(max(runs, MIN_RUNS)):
        gc.collect()
        began = time.perf_counter()
        for _ in range(count):
            action()
        times.append((time.perf_counter() - began) / count)
    return Figure(statistics.median(times), min(times), max(times), len(times), unit)


def decide(runs: int, policy: Policy, system: SystemInfo, target: str, kind: type[Decision]) -> Figure:
    """Return what a decision costs, which must be of that kind."""
    request = Request("test.S0", "+other", "vm-0001", target)
    found = evaluate(policy, system, request)
    if not isinstance(found, kind):
        raise TypeError(f"the call of the benchmark came to {found}")
    count, unit = (20, "ms") if kind is Ask else (DECISIONS, "us")
    return measure_each(runs, count, lambda: evaluate(policy, system, request), unit)


def exactly(seconds: float, unit: str) -> Figure:
    """Return a fixed time as a reference."""
    return Figure(seconds, seconds, seconds, 1, unit)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    system = build_system(100)
    few, many, spread, large = (build_policy(*size) for size in ((1, 5), (1, 500), (50, 10), (500, 10)))
    asking = load_text("\n".join([*write_rules("test.S0", 500)[:-1], "test.S0 * @anyvm @anyvm ask"]))
    text = "\n".join(line for number in range(50) for line in write_rules(f"test.S{number}", 10))
    few_cost, last, spread_cost, large_cost = (
        decide(runs, policy, system, "vm-0002", Allow) for policy in (few, many, spread, large)
    )
    refused = decide(runs, many, system, "dom0", Deny)
    disposable = decide(runs, many, system, "@dispvm", Allow)
    asked = decide(runs, asking, system, "", Ask)
    loaded = measure_each(runs, 3, lambda: load_text(text), "ms")
    drawn = measure_each(runs, 1, lambda: graph(spread, system, "test.S0"), "ms")
    fixed, limit = "a fixed time", exactly(DECIDE, "us")
    return [
        Row("a decision, the last of 500 rules", last, fixed, limit, 1),
        Row("a refusal, none of 500 rules", refused, fixed, limit, 1),
        Row("a disposable, the last of 500", disposable, fixed, limit, 1),
        Row("a decision, 500 rules, 50 services", spread_cost, "5 rules", few_cost, 3),
        Row("a decision, 5,000 rules, 500 services", large_cost, "500 rules", spread_cost, GROWTH),
        Row("a question, 500 rules, 100 VMs", asked, fixed, exactly(ASK, "ms"), 1),
        Row("load 500 rules", loaded, fixed, exactly(LOAD, "ms"), 1),
        Row("graph, 500 rules, 100 VMs", drawn, fixed, exactly(GRAPH, "ms"), 1),
    ]
