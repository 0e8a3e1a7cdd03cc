"""What Crannog asks of the processes that speak with guests."""

from collections.abc import Callable
from typing import Protocol

from crannog.core.announcement import AgentStatus

StatusListener = Callable[[str, AgentStatus], None]
"""Called in the event loop with a VM's UUID and what its agent is now."""


class AgentLinks(Protocol):
    """One RPC process a VM; it alone reads what the guest sends, and it outlives the daemon."""

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

    async def power_off(self, uuid: str) -> bool:
        """Ask the agent to shut its guest down; False when no agent is there to ask."""
