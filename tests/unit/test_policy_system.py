"""What policy knows of the VMs, as a value and as the daemon tells it."""

import json
from typing import Any

import pytest

from crannog.errors import ProtocolError
from crannog.policy.system import SystemInfo, VMInfo, read_system
from tests.unit.policy_world import SYSTEM, uuid

TOLD: dict[str, Any] = {
    "domains": {
        "dom0": {
            "internal": None, "tags": [], "type": "AdminVM", "template_for_dispvms": False, "default_dispvm": None,
            "icon": None, "label": "0x000000", "guivm": None, "relayvm": None, "transport_rpc": None,
            "power_state": "Running", "uuid": uuid(0),
        },
        "far": {
            "internal": "1", "tags": ["a", "b"], "type": "RemoteVM", "template_for_dispvms": True,
            "default_dispvm": "dvm", "icon": "appvm-red", "label": "0xcc0000", "guivm": "dom0", "relayvm": "relay",
            "transport_rpc": "ssh.Relay", "power_state": "NA", "uuid": uuid(7),
        },
    }
}  # fmt: skip


def test_what_the_daemon_tells() -> None:
    system = read_system(json.loads(json.dumps(TOLD)))
    admin = system.find("dom0")
    assert admin == VMInfo("dom0", uuid(0), "AdminVM", frozenset(), "Running", label="0x000000")
    assert system.find("far") == VMInfo(
        name="far",
        uuid=uuid(7),
        klass="RemoteVM",
        tags=frozenset({"a", "b"}),
        power_state="NA",
        template_for_dispvms=True,
        default_dispvm="dvm",
        guivm="dom0",
        relayvm="relay",
        transport_rpc="ssh.Relay",
        icon="appvm-red",
        label="0xcc0000",
        is_internal=True,
    )


@pytest.mark.parametrize("data", [None, [], {}, "x", {"domains": []}, {"domains": {"a": {}}}, {"domains": {"a": None}}])
def test_what_is_not_understood(data: object) -> None:
    with pytest.raises(ProtocolError, match="is not understood"):
        read_system(data)


def test_tags_that_are_one_text_are_not_taken_for_their_letters() -> None:
    told = {"domains": {"far": TOLD["domains"]["far"] | {"tags": "ab"}}}
    with pytest.raises(ProtocolError, match="is not understood"):
        read_system(told)


def test_look_up() -> None:
    work = SYSTEM.find("work")
    assert work is not None
    assert SYSTEM.find(f"uuid:{work.uuid}") is work
    assert [SYSTEM.find(name) for name in ("Work", "uuid:", "uuid:work", work.uuid, "", None)] == [None] * 6
    assert SYSTEM.tags() == {"x", "office", "secret", "remote"}
    assert len(SYSTEM) == len(list(SYSTEM)) == 9


def test_uuids_in_capitals() -> None:
    vm = VMInfo("a", "ABCDEF00-0000-0000-0000-000000000000", "AppVM")
    assert SystemInfo([vm]).find("uuid:abcdef00-0000-0000-0000-000000000000") is vm
