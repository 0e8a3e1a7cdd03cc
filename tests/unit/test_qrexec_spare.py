"""The process that waits for the next call."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.rpc.guest_call import Errand
from crannog.rpc.spare_errands import SpareErrands, decode_order, encode_order
from crannog.rpc.triggers import Trigger
from tests.processes import is_alive
from tests.unit.rpc_world import wait_until

TEXT = st.text("abcXYZ019_.@:-+", max_size=63)


@given(st.binary(min_size=1, max_size=31).map(lambda b: b.replace(b"\0", b"x")), TEXT, TEXT, TEXT)
def test_an_order_is_what_was_asked_for(ident: bytes, target: str, service: str, source: str) -> None:
    trigger = Trigger(ident.ljust(32, b"\0"), target, service, source)
    assert decode_order(encode_order(trigger)[4:]) == trigger


def test_the_longest_order_fits_a_pipe() -> None:
    assert len(encode_order(Trigger(b"x" * 31, "t" * 64, "s" * 65000, "u" * 64))) <= 65536


def work(trigger: Trigger) -> Callable[[Callable[[], None], Callable[[str], None]], int]:
    def run(tell: Callable[[], None], log: Callable[[str], None]) -> int:
        del tell, log
        os.write(1, trigger.service.encode())
        return 7

    return run


@pytest.fixture
def errands() -> Iterator[SpareErrands]:
    errands = SpareErrands(work)
    yield errands
    errands.close()


def finish(errand: Errand) -> tuple[bytes, int]:
    """Return output and exit code of a process."""
    output = b""
    while block := os.read(errand.stdout, 65536):
        output += block
    found = os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED)
    assert found
    for fd in errand.fds():
        os.close(fd)
    return output, found.si_status


def order(service: str) -> Trigger:
    return Trigger(b"SOCKET1".ljust(32, b"\0"), "dom0", service)


def test_without_calls_there_need_be_none(errands: SpareErrands) -> None:
    assert not errands.is_wanted


def test_the_spare_one_is_used_once(errands: SpareErrands) -> None:
    errands.prepare()
    assert finish(errands.start(order("a+" + "x" * 64000))) == (b"a+" + b"x" * 64000, 7)
    assert errands.is_wanted
    assert finish(errands.start(order("b+"))) == (b"b+", 7), "without one it works too"


def test_one_that_was_killed_is_replaced(errands: SpareErrands) -> None:
    errands.prepare()
    spare = errands._spare
    assert spare
    os.kill(spare.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(spare.pid))
    assert finish(errands.start(order("c+"))) == (b"c+", 7)
    with pytest.raises(ProcessLookupError):
        os.kill(spare.pid, 0)


def test_it_ends_when_no_call_comes_for_a_while(errands: SpareErrands) -> None:
    finish(errands.start(order("a+")))
    errands.prepare()
    spare, deadline = errands._spare, errands.deadline
    assert spare
    assert deadline
    errands.expire(deadline - 0.01)
    assert is_alive(spare.pid)
    errands.expire(deadline)
    with pytest.raises(ProcessLookupError):
        os.kill(spare.pid, 0)
    assert errands.deadline is None


def test_one_that_was_killed_is_buried_then_too(errands: SpareErrands) -> None:
    finish(errands.start(order("a+")))
    errands.prepare()
    spare, deadline = errands._spare, errands.deadline
    assert spare
    assert deadline
    os.kill(spare.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(spare.pid))
    errands.expire(deadline)
    with pytest.raises(ProcessLookupError):
        os.kill(spare.pid, 0)


def test_one_that_is_not_needed_ends(errands: SpareErrands) -> None:
    errands.prepare()
    spare = errands._spare
    assert spare
    time.sleep(0.05)
    assert is_alive(spare.pid), "it waits"
    errands.close()
    wait_until(lambda: not is_alive(spare.pid))
    os.waitpid(spare.pid, 0)
