"""These tests run as root in the machine that scripts/dm-lab makes, and leave it as they found it."""

import os
from collections.abc import Iterator

import pytest

from tests.dm.devices import list_remains, look_quickly, run


@pytest.fixture(scope="session", autouse=True)
def _in_the_lab() -> None:
    """Refuse to work on the block devices and volume groups of anybody's real host."""
    if os.environ.get("CRANNOG_LAB") != "dm-lab":
        pytest.exit("tests/dm runs in a machine of its own: use 'make test-dm'", returncode=2)


@pytest.fixture(scope="session", autouse=True)
def _leaves_nothing_at_all(_in_the_lab: None) -> Iterator[None]:
    """Fail when a device, a volume group or a mount is left in the end."""
    before = list_remains()
    yield
    assert list_remains() == before, "the tests left something behind, or took something away"


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """Fail a test that leaves a device or a mount behind. A volume group needs one to be on."""
    before = look_quickly()
    yield
    if look_quickly() != before:
        run("udevadm", "settle")
    assert look_quickly() == before, "the test left something behind, or took something away"
