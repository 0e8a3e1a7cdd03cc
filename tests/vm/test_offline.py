"""Offline mode beside real daemons and guests, clones with their data, and disposables that are created by name."""

from collections.abc import Iterator

import pytest

from tests.vm.home import Home


@pytest.fixture
def source(shared_home: Home) -> Iterator[str]:
    """Return the name of a halted AppVM with a file on its private volume."""
    shared_home.ok("qvm-create", "--template", "debian-12", "--label", "yellow", "source")
    shared_home.ok("qvm-start", "--wait", "source")
    shared_home.ok("qvm-run", "--user", "root", "source", "echo kept > /rw/file; sync")
    shared_home.ok("qvm-shutdown", "--wait", "source")
    yield "source"
    shared_home.run("qvm-kill", "source")
    shared_home.ok("qvm-remove", "--force", "source")


def test_offline_tools_refuse_while_a_daemon_runs_and_work_after_it(shared_home: Home, work: str) -> None:
    for words in (("qvm-ls",), ("qvm-prefs", work), ("qvm-remove", "--force", work), ("qubes-prefs", "clockvm", work)):
        complaint = shared_home.fails(11, words[0], "--offline", *words[1:])
        assert f"crannogd (process {shared_home.daemon()}) runs for {shared_home.path}" in complaint
        assert "crannog daemon stop" in complaint
    shared_home.ok("crannog", "daemon", "stop")
    shared_home.ok("qvm-prefs", "--offline", work, "memory", "501")
    assert shared_home.daemon() == 0
    assert shared_home.ok("qvm-prefs", work, "memory") == "501\n"


def test_a_vm_that_outlived_its_daemon_is_not_changed_offline(shared_home: Home, work: str) -> None:
    shared_home.ok("qvm-start", "--wait", work)
    shared_home.kill_daemon()
    assert "Running" in shared_home.ok("qvm-ls", "--offline", work)
    for words in (("qvm-remove", "--force", work), ("qvm-prefs", work, "name", "other"), ("qvm-clone", work, "other")):
        assert "while it is Running" in shared_home.fails(5, words[0], "--offline", *words[1:])
    complaint = shared_home.fails(4, "qvm-remove", "--offline", "--force", "debian-12")
    assert "debian-12 is in use by" in complaint
    assert "work (template)" in complaint
    shared_home.ok("qvm-tags", "--offline", work, "add", "seen")
    assert shared_home.ok("qvm-run", work, "echo alive") == "alive\n"
    assert shared_home.state(work) == "Running"
    assert "seen" in shared_home.ok("qvm-tags", work)
    shared_home.ok("qvm-kill", work)


def test_a_clone_has_settings_and_data_and_lives_alone(shared_home: Home, source: str) -> None:
    shared_home.ok("qvm-prefs", source, "memory", "350")
    shared_home.ok("qvm-notes", source, "--set", "ask Anna")
    shared_home.ok("qvm-clone", source, "copy")
    try:
        assert shared_home.ok("qvm-ls", "--raw-data", "--fields", "label,memory", "copy") == "yellow|350\n"
        assert shared_home.ok("qvm-notes", "copy") == "ask Anna\n"
        shared_home.ok("qvm-remove", "--force", source)
        shared_home.ok("qvm-start", "--wait", "copy")
        assert shared_home.ok("qvm-run", "copy", "cat /rw/file; hostname") == "kept\ncopy\n"
        assert "while it is Running" in shared_home.fails(5, "qvm-clone", "copy", source)
        shared_home.ok("qvm-shutdown", "--wait", "copy")
        shared_home.ok("qvm-clone", "copy", source)
    finally:
        shared_home.run("qvm-kill", "copy")
        shared_home.ok("qvm-remove", "--force", "copy")


@pytest.mark.slow
def test_a_disposable_shows_its_appvm_and_keeps_nothing(shared_home: Home, source: str) -> None:
    create = ("qvm-create", "--class", "DispVM", "--template", source, "once")
    assert "allow it with" in shared_home.fails(2, *create)
    shared_home.ok("qvm-prefs", source, "template_for_dispvms", "True")
    shared_home.ok(*create)
    try:
        shared_home.ok("qvm-start", "--wait", "once")
        assert "private of source" in shared_home.fails(6, "qvm-start", source)
        assert shared_home.ok("qvm-run", "--user", "root", "once", "cat /rw/file; echo changed > /rw/file") == "kept\n"
        shared_home.ok("qvm-shutdown", "--wait", "once")
        shared_home.ok("qvm-start", "--wait", "once")
        assert shared_home.ok("qvm-run", "once", "cat /rw/file") == "kept\n"
        assert "disposables of once" in shared_home.fails(4, "qvm-prefs", source, "template_for_dispvms", "False")
    finally:
        shared_home.run("qvm-kill", "once")
        shared_home.ok("qvm-remove", "--force", "once")
