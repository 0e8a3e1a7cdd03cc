"""The graph of a service: every call that is not denied, for all VMs."""

from crannog.policy.graph import Edge, format_dot, format_text, graph
from crannog.policy.loader import load_text
from crannog.policy.rules import Action
from crannog.policy.system import SystemInfo, VMInfo
from tests.unit.policy_world import SYSTEM, load_files, uuid


def edges(text: str, service: str = "a.B", argument: str = "+") -> list[str]:
    return [str(edge) for edge in graph(load_text(text), SYSTEM, service, argument)]


def test_edges() -> None:
    text = (
        "a.B * work @default allow target=vault\na.B * work work allow\na.B * vault dom0 ask\n"
        "a.B * work vault deny\na.B * work @tag:secret allow\n"
        "a.B * debian dvm ask target=vault\na.B * relay @dispvm:dvm2 allow\n"
    )
    assert edges(text) == [
        "debian -> vault ask (as dvm)",
        "relay -> @dispvm:dvm2 allow",
        "vault -> dom0 ask",
        "work -> vault allow (as @default)",
    ]


def test_disposables_and_remote_vms() -> None:
    assert edges("a.B * work @dispvm allow\na.B * work far allow\na.B * work lost allow") == [
        "work -> @dispvm:dvm allow (as @dispvm)",
        "work -> relay allow (as far)",
    ]


def test_what_dom0_calls_is_not_drawn() -> None:
    assert "dom0" not in {edge.source for edge in graph(load_text("a.B * * * allow"), SYSTEM, "a.B")}


def test_service_and_argument_count() -> None:
    assert edges("a.B +x work vault allow\na.C * vault work allow") == []
    assert edges("a.B +x work vault allow", argument="+x") == ["work -> vault allow"]


def test_a_policy_with_problems_has_no_edges() -> None:
    assert graph(load_files({"1.policy": "* * * * allow target=vault\nnonsense"}), SYSTEM, "a.B") == ()


def test_text_and_dot() -> None:
    found = (
        Edge("a", "b", Action.ALLOW, "b"),
        Edge("a", "b", Action.ALLOW, "@default"),
        Edge("b", "c", Action.ASK, "c"),
    )
    assert format_text(found) == "a -> b allow\na -> b allow (as @default)\nb -> c ask\n"
    assert format_dot(found, "a.B") == (
        'digraph "a.B" {\n  "a" -> "b" [style=solid];\n  "b" -> "c" [style=dashed];\n}\n'
    )


def test_names_cannot_leave_their_quotes() -> None:
    assert format_dot([Edge('x" -> "y', "b\\", Action.ALLOW, "b")], "t").splitlines()[1] == (
        '  "x\\" -> \\"y" -> "b\\\\" [style=solid];'
    )


def test_what_the_user_may_choose_is_drawn_once() -> None:
    system = SystemInfo([*(VMInfo(f"vm{number}", uuid(number), "AppVM") for number in range(1, 31))])
    found = graph(load_text("a.B * @anyvm @anyvm ask"), system, "a.B")
    assert len({(edge.source, edge.target) for edge in found}) == len(found) == 30 * 29


def test_where_the_user_can_turn_a_call_without_a_target() -> None:
    text = "a.B * work vault allow\na.B * work @default ask\na.B * work debian ask target=dvm\na.B * work dvm2 ask"
    assert edges(text) == [
        "work -> dvm ask (as debian)",
        "work -> dvm2 ask",
        "work -> vault allow",
    ]
    assert edges("a.B * work @default ask target=vault") == ["work -> vault ask (as @default)"]
