"""Addresses: what follows from a VM's number, its netvm and its features (Admin API, section 6)."""

from ipaddress import IPv4Address, ip_address
from itertools import pairwise

import pytest

from crannog.core import network
from crannog.core.properties import STAGE_SETTINGS
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import ValueRefusedError
from tests.fakes import add_vm, new_registry, template_and_app

FAKES = {"net.fake-ip": "192.168.1.5", "net.fake-gateway": "192.168.1.1", "net.fake-netmask": "255.255.255.0"}
READ_ONLY = [
    "dns", "gateway", "gateway6",
    "visible_ip", "visible_ip6", "visible_gateway", "visible_gateway6", "visible_netmask",
]  # fmt: skip
OF_NETWORK = ["ip", "ip6", *READ_ONLY]


def chain(registry: Registry, length: int = 2) -> list[LocalVM]:
    """Return VMs `hop1`, `hop2`, ...: each gets its network from the next, all but the first provide one."""
    vms = [add_vm(registry, "StandaloneVM", f"hop{number}") for number in range(1, length + 1)]
    for vm in vms[1:]:
        vm.set("provides_network", value=True)
    for vm, upstream in pairwise(vms):
        vm.set("netvm", upstream)
    return vms


def renumber(vm: LocalVM, qid: int) -> None:
    vm.values["qid"] = qid


def shown(vm: QubeBase, *names: str) -> list[str | None]:
    return [vm.get(name) for name in names]


@pytest.mark.parametrize(
    ("number", "rest"),
    [
        (0, "0.0"),
        (1, "0.1"),
        (253, "0.253"),
        (254, "0.254"),
        (255, "1.1"),
        (256, "1.2"),
        (508, "1.254"),
        (509, "2.1"),
        (6629, "26.25"),
        (9999, "39.93"),
    ],
)
def test_addresses_by_number(number: int, rest: str) -> None:
    registry = new_registry()
    vm, _ = chain(registry)
    renumber(vm, number)
    assert (vm.get("ip"), network.address(138, number)) == (f"10.137.{rest}", f"10.138.{rest}")


def test_addresses_are_unique_and_can_be_used() -> None:
    numbers = range(1, 10000)
    addresses = {second: [network.address(second, number) for number in numbers] for second in (137, 138)}
    both = [text for text in addresses[137] + addresses[138] if text]
    assert len({IPv4Address(text) for text in both}) == len(both) == 2 * 9999
    assert not [text for text in both if text.endswith((".0", ".255"))]


def test_the_highest_number_that_has_addresses() -> None:
    vm, upstream = chain(new_registry())
    upstream.features["ipv6"] = "1"
    renumber(vm, 65024)
    assert shown(vm, "ip", "ip6") == ["10.137.255.254", "fd09:24ef:4179::a89:fe00"]


@pytest.mark.parametrize("number", [65025, 70000])
def test_a_number_of_any_size_never_makes_nonsense(number: int) -> None:
    vm, upstream = chain(new_registry())
    upstream.features["ipv6"] = "1"
    renumber(vm, number)
    renumber(upstream, number + 1)
    assert all(ip_address(text) for text in shown(vm, "ip", "ip6") if text)
    assert shown(vm, "ip", "ip6", "visible_ip", "visible_ip6", "visible_gateway", "visible_gateway6") == [None] * 6
    assert shown(upstream, "gateway", "gateway6") == [None] * 2
    assert dict(vm.describe_all())["ip"] == "default=True type=str "
    vm.set("ip", "10.9.0.1")
    assert shown(vm, "ip", "visible_ip") == ["10.9.0.1"] * 2


def test_a_disposable_has_the_address_of_its_dispid() -> None:
    registry = new_registry()
    _, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    vm = registry.create("DispVM", "disp6629", "00000000-0000-4000-8000-000000000009", app, dispid=6629)
    vm.set("provides_network", value=True)
    vm.features["ipv6"] = "1"
    assert (vm.get("ip"), vm.get("ip6")) == ("10.138.26.25", "fd09:24ef:4179::a8a:19e5")
    assert vm.qid != 6629


def test_a_disposable_has_its_addresses_whatever_its_qid() -> None:
    """Numbers of VMs grow with every disposable; those of disposables are given again."""
    registry = new_registry()
    _, app = template_and_app(registry)
    app.set("template_for_dispvms", value=True)
    vm = registry.create("DispVM", "disp6629", "00000000-0000-4000-8000-000000000009", app, dispid=6629)
    vm.set("provides_network", value=True)
    vm.features["ipv6"] = "1"
    vm.values["qid"] = 70000
    assert shown(vm, "ip", "ip6") == ["10.138.26.25", "fd09:24ef:4179::a8a:19e5"]


@pytest.mark.parametrize(("qid", "host"), [(1, "1"), (15, "f"), (300, "12c"), (9999, "270f")])
def test_the_long_address_by_number(qid: int, host: str) -> None:
    vm, upstream = chain(new_registry())
    renumber(vm, qid)
    upstream.features["ipv6"] = "1"
    assert vm.get("ip6") == f"fd09:24ef:4179::a89:{host}"


def test_a_vm_without_a_network_has_no_addresses() -> None:
    registry = new_registry()
    alone, _ = add_vm(registry, "StandaloneVM", "alone"), chain(registry)
    alone.features.update(FAKES | {"ipv6": "1"})
    assert shown(alone, *OF_NETWORK) == [None] * len(OF_NETWORK)
    assert dict(alone.describe_all())["ip"] == "default=True type=str "
    assert alone.get("mac") == network.MAC == "00:16:3e:5e:6c:00"


def test_a_template_has_no_network_unless_it_is_given_one() -> None:
    registry = new_registry()
    _, upstream = chain(registry)
    registry.set("default_netvm", upstream)
    template, app = template_and_app(registry)
    assert (template.netvm, template.get("ip"), app.netvm) == (None, None, upstream)
    template.set("netvm", upstream)
    assert template.get("ip") == f"10.137.0.{template.qid}"


def test_what_a_client_sees() -> None:
    vm, upstream = chain(new_registry())
    assert shown(vm, "ip", "visible_ip") == [f"10.137.0.{vm.qid}"] * 2
    assert shown(vm, "visible_gateway", "visible_netmask") == [f"10.137.0.{upstream.qid}", "255.255.255.255"]
    assert shown(vm, "dns", "gateway", "gateway6") == ["10.139.1.1 10.139.1.2", None, None]
    assert shown(vm, "ip6", "visible_ip6", "visible_gateway6") == [None, None, None]


def test_what_a_provider_sees() -> None:
    _, middle, last = chain(new_registry(), 3)
    its_own, upstream = f"10.137.0.{middle.qid}", f"10.137.0.{last.qid}"
    assert shown(middle, "ip", "gateway", "visible_gateway") == [its_own, its_own, upstream]
    assert shown(last, "ip", "gateway", "dns") == [upstream, upstream, "10.139.1.1 10.139.1.2"]
    assert shown(last, "visible_ip", "visible_netmask", "visible_gateway") == [upstream, "255.255.255.255", None]


def test_a_provider_needs_no_network_of_its_own() -> None:
    """It does not follow the default netvm: that would often be itself."""
    registry = new_registry()
    _, last = chain(registry)
    registry.set("default_netvm", last)
    other = add_vm(registry, "StandaloneVM", "other")
    assert (last.netvm, other.netvm) == (None, last)
    other.set("provides_network", value=True)
    assert other.netvm is None


def test_a_vm_that_shall_not_know_its_address() -> None:
    vm, upstream = chain(new_registry())
    vm.features.update(FAKES)
    assert shown(vm, "visible_ip", "visible_gateway", "visible_netmask") == [*FAKES.values()]
    assert shown(vm, "ip", "gateway") == [f"10.137.0.{vm.qid}", None]
    assert upstream.get("gateway") == f"10.137.0.{upstream.qid}"
    vm.features.update(dict.fromkeys(FAKES, ""))
    assert shown(vm, "visible_ip", "visible_gateway") == [f"10.137.0.{vm.qid}", f"10.137.0.{upstream.qid}"]
    assert vm.get("visible_netmask") == "255.255.255.255"


def test_what_a_netvm_pretends_to_its_client_is_not_its_own_address() -> None:
    vm, upstream = chain(new_registry())
    upstream.features.update(FAKES)
    assert shown(vm, "visible_ip", "visible_gateway") == [f"10.137.0.{vm.qid}", f"10.137.0.{upstream.qid}"]


@pytest.mark.parametrize("owner", [0, 1, 2, 3])
def test_ipv6_comes_from_any_netvm_on_the_way(owner: int) -> None:
    vms = chain(new_registry(), 4)
    vms[owner].features["ipv6"] = "1"
    assert [vm.get("ip6") is not None for vm in vms] == [number <= owner for number in range(4)]
    vm, upstream = vms[0], vms[1]
    assert vm.get("visible_ip6") == vm.get("ip6") == f"fd09:24ef:4179::a89:{vm.qid}"
    assert vm.get("visible_gateway6") == upstream.get("gateway6") == upstream.get("ip6")


def test_a_vm_on_the_way_can_switch_ipv6_off() -> None:
    vms = chain(new_registry(), 4)
    vms[3].features["ipv6"] = "1"
    vms[1].features["ipv6"] = ""
    assert [vm.get("ip6") is not None for vm in vms] == [False, False, True, True]


def test_an_address_that_was_set_wins_everywhere() -> None:
    vm, upstream = chain(new_registry())
    for owner in (vm, upstream):
        owner.set("ip", f"10.9.0.{owner.qid}")
        owner.set("ip6", f"fd00::{owner.qid}")
    address = f"10.9.0.{vm.qid}"
    assert shown(vm, "ip", "visible_ip", "visible_ip6") == [address, address, f"fd00::{vm.qid}"]
    assert shown(vm, "visible_gateway", "visible_gateway6") == [f"10.9.0.{upstream.qid}", f"fd00::{upstream.qid}"]


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_follows_from_other_settings_is_not_set(name: str) -> None:
    vm, _ = chain(new_registry())
    assert vm.declared()[name].stage == STAGE_SETTINGS
    with pytest.raises(ValueRefusedError, match="read-only"):
        vm.set(name, "10.0.0.1")
