"""QEMU's guest agent: the name of its port in the guest, and where the host finds the socket of it.

It stands in where a guest has no agent of ours (docs/guest.md, "Guests with QEMU's agent alone"). Every RPC process
loads this, so that it holds next to nothing.
"""

PORT_NAME = "org.qemu.guest_agent.0"
"""What the agent opens below /dev/virtio-ports (qemu-ga(8), --path)."""
FEATURE = "qga"
"""Feature of a VM whose commands QEMU's guest agent runs: 1, else absent. Nobody inherits it."""


def qga_path(channel_path: str) -> str:
    """Return the socket of QEMU's guest agent beside the socket of our own agent's channel."""
    return channel_path.removesuffix(".sock") + ".qga"
