"""Where XenStore is. Every RPC process asks that, also where there is no Xen, and loads nothing else for it."""

import os

SOCKET = "/run/xenstored/socket"
VARIABLE = "XENSTORED_PATH"
"""Names another socket, for Xen's own library as well (libxenstore, xs_daemon_path)."""
DEVICE = "/dev/xen/xenbus"
CAPABILITIES = "/proc/xen/capabilities"
"""Says `control_d` in the domain that controls the others (Linux, drivers/xen/xenfs)."""


def find_xenstore(socket_path: str = SOCKET, device: str = DEVICE, capabilities: str = CAPABILITIES) -> str:
    """Return the path of this host's XenStore; empty where there is none, or where this is just one of its guests."""
    path = os.environ.get(VARIABLE) or socket_path
    if os.path.exists(path):
        return path
    try:
        with open(capabilities, encoding="ascii") as file:
            controls = "control_d" in file.read()
    except OSError:
        controls = False
    return device if controls and os.path.exists(device) else ""
