"""Where everything is, and the settings file.

`CRANNOG_HOME` moves all state into one folder. Without it, root uses /var/lib/crannog and an ordinary user
`$XDG_DATA_HOME/crannog` (~/.local/share/crannog). Built images are not state: they live in a cache that is keyed
by content and may be deleted at any time (`CRANNOG_CACHE`, or `$XDG_CACHE_HOME/crannog`).

The tools import this module at every start, so it imports nothing but `os` and keeps to plain classes.
"""

import os

from crannog.errors import StorageError, ValueRefusedError
from crannog.shortpath import short_path

SYSTEM_HOME = "/var/lib/crannog"
SYSTEM_SOCKET = "/var/run/qubesd.sock"
"""Where other programs look for the daemon of the whole host (Admin API, section 1)."""

SYSTEM_POLICY = ("/run/qubes/policy.d", "/etc/qubes/policy.d")
"""Where the policy of the whole host is (qrexec protocol, "Policy format")."""

ACCELERATORS = ("auto", "kvm", "tcg")


def _find_folder(variable: str, root_folder: str, xdg_variable: str, fallback: str) -> str:
    """Return what the variable says, else root's folder or an ordinary user's (XDG Base Directory Specification)."""
    chosen = os.environ.get(variable, "")
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return root_folder
    base = os.environ.get(xdg_variable, "")
    return os.path.join(base if base.startswith("/") else os.path.expanduser(fallback), "crannog")


def find_home() -> str:
    """Return the folder that holds all state, as an absolute path."""
    return _find_folder("CRANNOG_HOME", SYSTEM_HOME, "XDG_DATA_HOME", "~/.local/share")


def find_cache() -> str:
    """Return the folder of built images and probe results, as an absolute path."""
    return _find_folder("CRANNOG_CACHE", "/var/cache/crannog", "XDG_CACHE_HOME", "~/.cache")


class Paths:
    """Every path below one home. Nothing else in the package joins the home with a name."""

    def __init__(self, home: str | None = None, cache: str | None = None) -> None:
        self.home = os.path.abspath(home) if home else find_home()
        self.cache = os.path.abspath(cache) if cache else find_cache()
        self.store = self.home + "/qubes.xml"
        self.settings = self.home + "/crannog.toml"
        self.pools = self.home + "/pools"
        self.kernels = self.pools + "/linux-kernel"
        self.pid_files = self.home + "/vmm/run/qemu"
        self.overrides = self.home + "/vmm-overrides/by-name"
        self.memory_images = self.home + "/memory-images"
        self.logs = self.home + "/log"
        self.daemon_log = self.logs + "/crannogd.log"
        # Sockets are used under the home's short path; everything else under its own.
        self.run = short_path(self.home) + "/run"
        self.daemon_lock = self.run + "/crannogd.lock"
        self.daemon_socket = self.run + "/crannogd.sock"
        self.internal_socket = self.run + "/crannogd.internal.sock"
        if self.is_system_wide and os.geteuid():
            self.daemon_socket = SYSTEM_SOCKET  # the home's own is for root alone
        self.misc_socket = self.run + "/crannogd.misc.sock"
        self.policy_socket = self.run + "/policy.sock"
        self.policy_agent_socket = self.run + "/policy-agent.sock"
        self.policy_log = self.logs + "/policy.log"
        self.services_log = self.logs + "/services.log"
        self.services = self.home + "/qubes-rpc"
        self.clipboard = self.run + "/clipboard"

    @property
    def policy_folders(self) -> tuple[str, ...]:
        """The folders with policy, in the order in which a file of one hides those of the same name in the next."""
        return SYSTEM_POLICY if self.is_system_wide else (self.home + "/policy.d",)

    def console_log(self, vm: str) -> str:
        """Return the file that holds what the VM `vm` wrote to its console at its last start."""
        return f"{self.logs}/console-{vm}.log"

    @property
    def is_system_wide(self) -> bool:
        """Whether this is the home that serves the whole host, with sockets where other programs look for them."""
        return self.home == SYSTEM_HOME

    def rpc_socket(self, vm: str) -> str:
        """Return the socket on which the VM's RPC process takes calls from this host."""
        return f"{self.run}/rpc-{vm}.sock"

    def channel_socket(self, uuid: str) -> str:
        """Return the socket at which QEMU serves the agent's channel of the VM with that UUID."""
        return f"{self.run}/channel-{uuid[:8]}.sock"

    def screen_socket(self, uuid: str) -> str:
        """Return the socket at which QEMU serves the screen (VNC) of the VM with that UUID."""
        return f"{self.run}/screen-{uuid[:8]}.sock"

    def display_socket(self, kind: str, uuid: str) -> str:
        """Return the socket on which the process of a display, `screen` or `agent`, says how it is."""
        return f"{self.run}/show-{kind}-{uuid[:8]}.sock"

    @staticmethod
    def client_socket(display_socket: str) -> str:
        """Return where a display's process waits for the client that it has started; beside its own socket."""
        return f"{display_socket.removesuffix('.sock')}-client.sock"

    def display_log(self, vm: str) -> str:
        """Return the log of the processes that show the VM."""
        return f"{self.logs}/display-{vm}.log"

    @property
    def autostart_mark(self) -> str:
        """The file that keeps which boot of the host the VMs were started after."""
        return self.run + "/autostarted"

    def console_lock(self, vm: str) -> str:
        """Return the file that whoever uses the console of the VM `vm` has locked."""
        return f"{self.run}/console-{vm}.lock"

    def start_mark(self, uuid: str) -> str:
        """Return the file that is there while the VM with that UUID is created and does not run yet."""
        return f"{self.run}/starting-{uuid}"

    def restore_mark(self, uuid: str) -> str:
        """Return the file that is there while the VM with that UUID is a copy of a saved one, with its secrets."""
        return f"{self.run}/restoring-{uuid}"

    def claim_mark(self, uuid: str) -> str:
        """Return the file that is there while the disposable with that UUID is being handed out."""
        return f"{self.run}/claiming-{uuid}"

    def rpc_log(self, vm: str) -> str:
        """Return the log of the VM's RPC process."""
        return f"{self.logs}/rpc-{vm}.log"


class Settings:
    """What crannog.toml may say; anything it does not say has the default given here."""

    def __init__(self) -> None:
        self.accel = "auto"
        self.emulator = ""
        self.libvirt_uri = "qemu:///embed"
        self.api_socket = ""
        self.internal_socket = ""
        self.misc_socket = ""
        self.api_group = ""

    @classmethod
    def load(cls, path: str) -> "Settings":
        """Read the settings file at `path`; an absent file means all defaults.

        Raises ValueRefusedError, naming the file and the key, for anything that is not a known setting.
        """
        import tomllib

        settings = cls()
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except FileNotFoundError:
            values = {}
        except (OSError, ValueError) as error:
            raise StorageError(f"the settings file {path} cannot be read: {error}") from error
        override = os.environ.get("CRANNOG_ACCEL")
        if override:
            values["accel"] = override
        for key, value in values.items():
            settings._set(path, key, value)
        return settings

    def _set(self, path: str, key: str, value: object) -> None:
        if key not in self.__dict__ or not isinstance(value, str):
            known = ", ".join(self.__dict__)
            raise ValueRefusedError(f"{path}: '{key}' is not a setting of type text (known: {known})")
        if key == "accel" and value not in ACCELERATORS:
            raise ValueRefusedError(
                f"accel = '{value}' is not one of {', '.join(ACCELERATORS)} ({path} or CRANNOG_ACCEL)"
            )
        setattr(self, key, value)
