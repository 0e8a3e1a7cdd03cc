"""A Xen host whose processor has no hardware virtualisation (B14): run with `scripts/xen-lab --cpu`."""

import os
from collections.abc import Callable

import pytest

from crannog.errors import StartError
from tests.xen.home import XenHome, list_remains, run, wait_for_remains, xen_domain

Tell = Callable[[str, object], None]


@pytest.mark.skipif(os.environ.get("XEN_HVM") != "no", reason="a run of its own, on a host without HVMs")
def test_hvm_is_refused_with_the_reason_and_pv_runs(xen_home: XenHome, record_property: Tell) -> None:
    assert "hvm" not in run("xl", "info", "virt_caps")
    before = list_remains()
    xen_home.create("full", "hvm")
    xen_home.create("light", "pv")
    with pytest.raises(StartError) as caught:
        xen_home.call("crannog.vm.Start", "full", "nowait")
    assert "this host can run none: its hypervisor reports no guest type 'hvm'" in str(caught.value), caught.value
    record_property("fact", f"refused: {caught.value}")
    assert (xen_home.power_state("full"), xen_domain("full")) == ("Halted", [])
    xen_home.start("light")
    assert xen_home.in_guest("light", "cat /sys/hypervisor/type") == "xen\n"
    for name in ("full", "light"):
        xen_home.remove(name)
    wait_for_remains(before)
    record_property("fact", "a PV guest ran")
