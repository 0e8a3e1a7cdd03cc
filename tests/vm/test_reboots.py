"""A guest that restarts itself: the domain stays, and the agent is found again."""

from tests.vm.home import Home, wait_until


def test_a_guest_that_reboots_goes_on(shared_home: Home, work: str) -> None:
    shared_home.ok("qvm-start", "--wait", work)
    xid, process = shared_home.ok("qvm-prefs", work, "xid"), shared_home.qemu(work)
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = shared_home.ok("qvm-run", "--pass-io", work, boot)
    shared_home.ok("qvm-run", "--user", "root", "--pass-io", work, "echo kept > /rw/kept; sync")
    shared_home.run("qvm-run", "--user", "root", work, "reboot")
    wait_until(lambda: has_rebooted(shared_home, work, before), "the agent answers after the restart", 60)
    assert shared_home.state(work) == "Running"
    assert (shared_home.ok("qvm-prefs", work, "xid"), shared_home.qemu(work)) == (xid, process)
    assert shared_home.ok("qvm-run", "--pass-io", work, "cat /rw/kept") == "kept\n"
    shared_home.ok("qvm-shutdown", "--wait", work)
    assert shared_home.state(work) == "Halted"


def has_rebooted(home: Home, vm: str, before: str) -> bool:
    done = home.run("qvm-run", "--pass-io", vm, "cat /proc/sys/kernel/random/boot_id")
    return done.returncode == 0 and done.stdout.decode() != before
