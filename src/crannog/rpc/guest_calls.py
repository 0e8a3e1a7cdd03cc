"""All the calls that a guest makes: how many there may be, and what is waited for (guest_call.py has one)."""

from collections.abc import Callable, Iterator

from crannog.rpc.allowance import Allowance
from crannog.rpc.channel import GuestChannel
from crannog.rpc.guest_call import Errand, GuestCall, Stage
from crannog.rpc.triggers import Trigger

CALLS_MAX = 128
"""Most calls of one guest at once, those included that the policy has not decided yet."""


class GuestCalls:
    """All calls of one guest."""

    def __init__(
        self,
        channel: GuestChannel,
        run: Callable[[Trigger], Errand],
        log: Callable[[str], None],
        keep: Callable[[bytes], None] = lambda _complaints: None,
    ) -> None:
        """`run` starts the process of a call; raises OSError when there can be none. For `keep` see GuestCall."""
        self._channel = channel
        self._keep = keep
        self._run = run
        self._log = log
        self._calls: list[GuestCall] = []
        self._allowance = Allowance()
        channel.on_trigger = self.begin
        channel.on_break = self._drop_asked

    def begin(self, trigger: Trigger) -> None:
        """Start a call; one too many is refused."""
        if len(self._calls) >= CALLS_MAX or not self._allowance.take():
            self._log(f"refused a call of {trigger.service}: there are too many of them")
            self._channel.refuse(trigger.ident)
            return
        try:
            self._calls.append(GuestCall(self._channel, trigger.ident, self._run(trigger), self._keep))
        except OSError as error:
            self._log(f"refused a call of {trigger.service}: no process can be started for it ({error.strerror})")
            self._channel.refuse(trigger.ident)

    def _drop_asked(self) -> None:
        """End the calls that nobody has decided about: the next agent may use their idents for others."""
        for call in self._calls:
            if call.stage is Stage.ASKED:
                call.close()

    def wants(self) -> Iterator[tuple[int, int, GuestCall]]:
        """Give the file descriptors to wait for, with their poll events and their calls."""
        for call in self._calls:
            yield from ((fd, events, call) for fd, events in call.wants())

    def bury(self) -> None:
        """Forget the calls that are over."""
        self._calls = [call for call in self._calls if not call.is_buried]

    def close(self) -> None:
        """End all calls: the guest is gone."""
        for call in self._calls:
            call.close()
