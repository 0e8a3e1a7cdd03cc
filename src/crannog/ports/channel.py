"""What Crannog asks of the processes that speak with guests."""

from collections.abc import Callable, Mapping
from typing import Protocol

from crannog.core.announcement import AgentStatus

Describe = Callable[[str], Mapping[str, str]]
"""Returns what the VM with a UUID is told in its guest DB: values by their paths."""

StatusListener = Callable[[str, AgentStatus], None]
"""Called in the event loop with a VM's UUID and what its agent is now."""


class AgentLinks(Protocol):
    """One RPC process a VM; it alone reads what the guest sends, and it outlives the daemon."""

    def provide(self, describe: Describe) -> None:
        """Have each VM's guest DB hold what `describe` says of it, from the start of its RPC process on."""

    def refresh(self, uuid: str) -> None:
        """Bring a VM's guest DB to what is to be said of it now; nothing where it does not run."""

    def set_clock(self, uuid: str, nanoseconds: int) -> None:
        """Have a guest's agent set the guest's clock to so many nanoseconds since 1970; nothing where none is there."""

    async def exercise(self, uuid: str) -> None:
        """Have the guest run a command that does nothing, so that the next one finds all it needs loaded.

        In a guest with windows the session is there as well when this returns.
        """

    async def put_to_sleep(self, uuid: str) -> None:
        """Have the agent stop the guest's other processes, as its memory is to be saved.

        Raises RpcError when the agent cannot do that, or not within some seconds.
        """

    async def renew(self, uuid: str, name: str, timeout: float) -> None:  # noqa: ASYNC109
        """Have the agent of a guest that was restored make it that of the VM.

        It gets a machine-id, keys and random numbers of its own, and the time of now. Raises RpcError when it does not
        say that it has, within so many seconds.
        """

    async def read_entries(self, uuid: str, prefix: str) -> dict[str, bytes]:
        """Return the entries of a VM's guest DB below a path: what the guest wrote is untrusted. Raises RpcError."""

    async def introduce(self, uuid: str) -> None:
        """Tell the VM's RPC process of its new domain; return when its guest DB is up and filled. Raises RpcError."""

    def listen(self, listener: StatusListener) -> None:
        """Have `listener` called whenever an agent comes, goes or announces itself."""

    async def start(self, uuid: str, name: str, default_user: str) -> None:
        """Start the VM's RPC process. Commands run as `default_user`; as the agent's own choice when it is empty."""

    async def adopt(self, uuid: str, name: str, default_user: str) -> None:
        """Find the RPC process of a VM that runs already; start one when there is none."""

    async def stop(self, uuid: str) -> None:
        """End the VM's RPC process; no error when there is none."""

    async def end_strays(self) -> list[str]:
        """End the RPC processes that serve no VM which was adopted; return a sentence for each."""

    def status(self, uuid: str) -> AgentStatus | None:
        """Return what is known of the VM's agent, None without a process."""

    async def close(self) -> None:
        """Leave the processes to themselves, as the daemon ends; they go on."""

    async def power_off(self, uuid: str) -> bool:
        """Ask the agent to shut its guest down; False when no agent is there to ask."""
