"""How many calls a guest may make."""

from crannog.rpc.allowance import Allowance


def test_a_burst_and_then_a_rate() -> None:
    now = 0.0
    allowance = Allowance(rate=10, burst=3, clock=lambda: now)
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
    now += 0.1
    assert [allowance.take() for _ in range(2)] == [True, False]
    now += 1000
    assert [allowance.take() for _ in range(4)] == [True, True, True, False], "rest is not saved up without end"
