"""The files that Crannog itself puts into an image, beside the distribution's packages."""

import dataclasses
import io
import os
import tarfile

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "files")
_GUEST = os.path.join(os.path.dirname(os.path.dirname(_FOLDER)), "guest")

LIBRARY = "usr/lib/crannog"
AGENT = LIBRARY + "/agent.py"
_UNITS = "usr/lib/systemd/system"
UNIT = f"{_UNITS}/crannog-agent.service"
EARLY_UNITS = {"crannog-identity": "sysinit", "crannog-private": "local-fs", "crannog-grow": "multi-user"}
"""What else systemd does at the boot, and for which target (guest/systemd)."""
_RULES = "usr/lib/udev/rules.d/60-crannog-grow.rules"
SERVICES = "etc/qubes-rpc"
CONFIGS = "etc/qubes/rpc-config"
GUI = LIBRARY + "/gui"
GUI_UNIT = f"{_UNITS}/crannog-gui.service"
_PRESET = "usr/lib/systemd/system-preset/50-crannog-gui.preset"
_WANTS = "etc/systemd/system/multi-user.target.wants"
_CLIENT = "usr/bin/qrexec-client-vm"
_DATABASE_TOOLS = ("read", "multiread", "list", "write", "rm", "watch")
_COPIES = ("qvm-copy", "qvm-copy-to-vm", "qvm-move", "qvm-move-to-vm")
_GUI_PROGRAMS = ("autostart.py", "keyboard.py", "own_keyboard.py", "programs", "session.py")
_HOOKS = {"initramfs-tools": "usr/share/initramfs-tools", "dracut": "usr/lib/dracut/modules.d/90crannog"}
"""Folders beside the agent, and where the programs that make an initramfs look for what is in them."""


def read_file(name: str) -> bytes:
    """Return the content of a data file of this package."""
    with open(os.path.join(_FOLDER, name), "rb") as file:
        return file.read()


def data_path(name: str) -> str:
    """Return where a data file of this package is."""
    return os.path.join(_FOLDER, name)


def _read_guest(*names: str) -> bytes:
    with open(os.path.join(_GUEST, *names), "rb") as file:
        return file.read()


@dataclasses.dataclass(frozen=True)
class GuestFile:
    """A file, a folder (mode with S_IFDIR's meaning: no content, no target) or a link, owned by root."""

    path: str
    mode: int = 0o644
    content: bytes | None = None
    target: str = ""

    def to_member(self) -> tarfile.TarInfo:
        """Return the tar header."""
        member = tarfile.TarInfo(self.path)
        member.mode = self.mode
        if self.target:
            member.type, member.linkname = tarfile.SYMTYPE, self.target
        elif self.content is None:
            member.type = tarfile.DIRTYPE
        else:
            member.size = len(self.content)
        return member


def list_guest_files(hostname: str, agent: bytes, *, has_gui: bool = False) -> list[GuestFile]:
    """Return what an image gets: init's table and scripts, the agent, and the folders they need.

    `has_gui`: also the graphical session, which init starts.
    """
    script, folder = 0o755, 0o755
    return [
        *list_agent_files(agent),
        *(
            GuestFile(f"{LIBRARY}/{name}", script, read_file(name))
            for name in ("sysinit", "coldplug", "console-login", "shutdown")
        ),
        GuestFile("etc/inittab", content=read_file("inittab") + (read_file("inittab-gui") if has_gui else b"")),
        GuestFile("usr/sbin/init", target="../bin/busybox"),
        GuestFile("usr/sbin/modprobe", target="../bin/busybox"),
        *(GuestFile(f"usr/sbin/{name}", target=f"/{LIBRARY}/shutdown") for name in ("poweroff", "reboot", "halt")),
        # Where busybox acpid looks for what the power button does.
        GuestFile("etc/acpi", folder),
        GuestFile("etc/acpi/PWRF", folder),
        GuestFile("etc/acpi/PWRF/00000080", script, read_file("power-button")),
        # Without effect until somebody installs systemd as init.
        GuestFile(os.path.dirname(_WANTS), folder),
        GuestFile(_WANTS, folder),
        GuestFile(f"{_WANTS}/crannog-agent.service", target=f"/{UNIT}"),
        *_list_early_wants(),
        *((*list_gui_files(), GuestFile(f"{_WANTS}/crannog-gui.service", target=f"/{GUI_UNIT}")) if has_gui else ()),
        GuestFile("etc/hostname", content=hostname.encode() + b"\n"),
        GuestFile("etc/hosts", content=read_file("hosts")),
        GuestFile(f"{LIBRARY}/layers.sh", content=read_layers()),
        *(file for name, place in _HOOKS.items() for file in _list_hooks(name, place)),
    ]


def list_agent_files(agent: bytes) -> list[GuestFile]:
    """Return what makes any Linux a guest: the agent and its unit, the services, and the tools that call services."""
    script, folder = 0o755, 0o755
    return [
        *(GuestFile(path, folder) for path in (LIBRARY, "usr/lib/qubes", SERVICES, "etc/qubes", CONFIGS)),
        GuestFile(AGENT, script, agent),
        GuestFile("rw", folder),
        *(GuestFile(f"{_UNITS}/{name}.service", content=_read_unit(name)) for name in ("crannog-agent", *EARLY_UNITS)),
        GuestFile(_RULES, content=_read_guest("systemd", os.path.basename(_RULES))),
        *(
            GuestFile(f"{LIBRARY}/{name}", script, read_file(name))
            for name in ("fresh-identity", "grow-volume", "private-volume")
        ),
        GuestFile(f"{LIBRARY}/qfile.py", script, _read_guest("qfile.py")),
        GuestFile(f"{LIBRARY}/qvm_copy.py", script, _read_guest("qvm_copy.py")),
        *(GuestFile(f"usr/bin/{name}", target=f"/{LIBRARY}/qvm_copy.py") for name in _COPIES),
        GuestFile(f"{LIBRARY}/guestdb.py", script, _read_guest("guestdb.py")),
        *(GuestFile(f"usr/bin/qubesdb-{name}", target=f"/{LIBRARY}/guestdb.py") for name in _DATABASE_TOOLS),
        GuestFile(_CLIENT, script, _read_guest("qrexec_client_vm.py")),
        GuestFile("usr/lib/qubes/qrexec-client-vm", target=f"/{_CLIENT}"),
        *_list_folder("services", SERVICES, script),
        GuestFile(f"{SERVICES}/qubes.VMExecGUI", target="qubes.VMExec"),
        GuestFile(f"{SERVICES}/qubes.ConnectTCP", target="/dev/tcp/127.0.0.1"),  # the argument is the port
        *_list_folder("rpc-config", CONFIGS, 0o644),
    ]


def _read_unit(name: str) -> bytes:
    return _read_guest("systemd", f"{name}.service")


def _list_early_wants() -> list[GuestFile]:
    """Return what `systemctl enable` would make."""
    found = []
    for name, target in EARLY_UNITS.items():
        wants = f"etc/systemd/system/{target}.target.wants"
        found += [GuestFile(wants, 0o755)] if wants != _WANTS else []
        found.append(GuestFile(f"{wants}/{name}.service", target=f"/{_UNITS}/{name}.service"))
    return found


def list_gui_files() -> list[GuestFile]:
    """Return what lets a guest's windows be shown on the host, besides the agent (docs/display.md)."""
    script = 0o755
    return [
        GuestFile(GUI, 0o755),
        *(GuestFile(f"{GUI}/{name}", script, _read_guest("gui", name)) for name in _GUI_PROGRAMS),
        GuestFile(GUI_UNIT, content=_read_guest("gui", "crannog-gui.service")),
        GuestFile(_PRESET, content=_read_guest("gui", "systemd", "50-crannog-gui.preset")),
        *_list_drop_ins(),
        *_list_folder("gui/services", SERVICES, script),
        GuestFile(f"{SERVICES}/crannog.Display", target="/run/crannog/gui/xpra.sock"),
        *_list_folder("gui/rpc-config", CONFIGS, 0o644),
    ]


def _list_drop_ins() -> list[GuestFile]:
    """Return what keeps systemd from starting the server of the package xpra, which listens on TCP."""
    content = _read_guest("gui", "systemd", "xpra.conf")
    folders = [f"{os.path.dirname(GUI_UNIT)}/xpra.{kind}.d" for kind in ("service", "socket")]
    return [
        *(GuestFile(folder, 0o755) for folder in folders),
        *(GuestFile(f"{folder}/50-crannog.conf", content=content) for folder in folders),
    ]


def _list_folder(name: str, place: str, mode: int) -> list[GuestFile]:
    """Return the files of one folder beside the agent that belong to services."""
    names = os.listdir(os.path.join(_GUEST, name))
    names = sorted(file for file in names if file.startswith(("qubes.", "crannog.")))
    return [GuestFile(f"{place}/{file}", mode, _read_guest(name, file)) for file in names]


def read_layers() -> bytes:
    """Return the script with which every initramfs puts the second layer over a root."""
    return _read_guest("layers.sh")


def _list_hooks(name: str, place: str) -> list[GuestFile]:
    """Return the files of one folder beside the agent: without effect where nothing makes an initramfs."""
    found = []
    top = os.path.join(_GUEST, name)
    for parent, _, names in sorted(os.walk(top)):
        folder = os.path.normpath(f"{place}/{os.path.relpath(parent, top)}")
        found.append(GuestFile(folder, 0o755))
        found += [GuestFile(f"{folder}/{file}", 0o755, _read_guest(parent, file)) for file in sorted(names)]
    return found


def write_tar(files: list[GuestFile], path: str) -> None:
    """Write the files to a tar file, owned by root, with a fixed time."""
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.addfile(file.to_member(), io.BytesIO(file.content or b""))
