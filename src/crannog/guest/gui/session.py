#!/usr/bin/python3
"""The graphical session of a guest: an X display for the default user, and xpra, which forwards it to the host.

Started as root by init or systemd, and again when it ends. It needs xpra 3 and Xvfb, and is one file of Python 3.9,
with programs beside it: autostart.py, keyboard.py and own_keyboard.py.
Applications live on one display, :0, for as long as it runs; the mode only says how that display is forwarded:

- SEAMLESS: `xpra start --use-display` manages the windows, and forwards each of them.
- FULLSCREEN: a window manager, if there is one, and `xpra shadow`, which forwards the whole screen as one window.

The keyboard is the host's, as xpra sees to, unless the VM has a layout of its own (entry /keyboard-layout of the guest
DB): then the display gets that one, and keeps it.

The host writes the mode with qubes.SetGuiMode to MODE_FILE; SEAMLESS holds until then. xpra listens on a socket in a
folder of the user's, and nowhere else; service crannog.Display is a link to that socket.

Files in /run/crannog: `environment.USER` has DISPLAY and XAUTHORITY for what the agent starts, `session.USER` says that
the display is there (qubes.WaitForSession). /etc/crannog/gui.conf may say `size = 1920x1080`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

RUN = "/run/crannog"
FOLDER = RUN + "/gui"
SOCKET = FOLDER + "/xpra.sock"
AUTHORITY = FOLDER + "/Xauthority"
MODE_FILE = "/run/qubes/gui-mode"
LAYOUT_FILE = "/run/qubes/guestdb/%keyboard-layout"
CONFIG = "/etc/crannog/gui.conf"
HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS, AUTOSTART = f"{HERE}/programs", f"{HERE}/autostart.py"
KEYBOARD, OWN_KEYBOARD = f"{HERE}/keyboard.py", f"{HERE}/own_keyboard.py"
HOSTS_LAYOUT = "us++"
"""What the property keyboard_layout has unless somebody sets it: the host's keyboard is followed."""
DISPLAY = ":0"
X_SOCKET = "/tmp/.X11-unix/X0"  # noqa: S108  where every X server on Linux listens
X_LOCK = "/tmp/.X0-lock"  # noqa: S108
SIZE = "1920x1080"
SEAMLESS, FULLSCREEN = "SEAMLESS", "FULLSCREEN"
MANAGERS = ("x-session-manager", "x-window-manager", "openbox", "twm")
LOOK = 0.2
X_WAIT = 60.0
GRACE = 5.0
PAUSES = (0.5, 2.0, 10.0)

OFF = (
    "bell",
    "clipboard",
    "dbus-control",
    "dbus-proxy",
    "file-transfer",
    "forward-xdg-open",
    "global-menus",
    "html",
    "mdns",
    "mmap",
    "notifications",
    "open-files",
    "open-url",
    "opengl",
    "printing",
    "pulseaudio",
    "remote-logging",
    "ssh-upgrade",
    "start-new-commands",
    "system-tray",
    "systemd-run",
    "tray",
    "webcam",
    "xsettings",
)
"""What the host does not let through anyway; without it, xpra starts sooner."""


def log(sentence: str) -> None:
    """Write one line to stderr, which is the console or the journal."""
    with contextlib.suppress(OSError):
        os.write(2, f"crannog-gui: {sentence}\n".encode(errors="replace"))


def find_user() -> pwd.struct_passwd:
    """Return the default user, as the agent finds it: `user`, else the first ordinary one. Raises LookupError."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("user")
    for user in sorted(pwd.getpwall(), key=lambda entry: entry.pw_uid):
        if 1000 <= user.pw_uid < 60000:
            return user
    raise LookupError("there is no ordinary user to have a session: make one called user")


def read_size(path: str) -> str:
    """Return the display's size, WIDTHxHEIGHT."""
    try:
        with open(path, encoding="utf-8") as file:
            found = re.findall(r"^size\s*=\s*([0-9]{3,5}x[0-9]{3,5})\s*$", file.read(), re.MULTILINE)
    except OSError:
        return SIZE
    return str(found[-1]) if found else SIZE


def read_mode(path: str) -> str:
    """Return the mode that the host has told; SEAMLESS when it has told none that there is."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            mode = file.read(32).strip()
    except OSError:
        return SEAMLESS
    return mode if mode in (SEAMLESS, FULLSCREEN) else SEAMLESS


def read_layout(path: str) -> str:
    """Return the VM's own layout, LAYOUT+VARIANT+OPTIONS; an empty text when it follows the host's keyboard."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            layout = file.read(400).strip()
    except OSError:
        return ""
    return "" if layout == HOSTS_LAYOUT else layout


def make_authority(cookie: bytes) -> bytes:
    """Return an Xauthority file (xauth(1), libXau): one cookie, for display 0 by whatever name."""
    fields = (b"", b"0", b"MIT-MAGIC-COOKIE-1", cookie)
    return struct.pack(">H", 0xFFFF) + b"".join(struct.pack(">H", len(field)) + field for field in fields)


def is_served(path: str) -> bool:
    """Tell whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def make_environment(user: pwd.struct_passwd) -> dict[str, str]:
    """Return the environment of the user's programs."""
    return {
        "DISPLAY": DISPLAY,
        "GDK_BACKEND": "x11",
        "GTK_CSD": "0",  # windows that draw their own frame would have it inside of the host's
        "HOME": user.pw_dir,
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "LOGNAME": user.pw_name,
        "NO_AT_BRIDGE": "1",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "QT_QPA_PLATFORM": "xcb",
        "SHELL": user.pw_shell or "/bin/sh",
        "USER": user.pw_name,
        "XAUTHORITY": AUTHORITY,
        "XDG_RUNTIME_DIR": FOLDER,
    }


def list_xpra_words(mode: str, layout: str = "") -> list[str]:
    """Return the command line of the xpra server for a mode, and for a keyboard layout of the VM's own or none."""
    verb = ["start", DISPLAY, "--use-display=yes"] if mode == SEAMLESS else ["shadow", DISPLAY]
    program = ["/usr/bin/python3", "-s", OWN_KEYBOARD] if layout else ["xpra"]
    words = [*program, *verb, "--daemon=no", "--attach=no", f"--bind={SOCKET}", "--socket-permissions=600"]
    words += [f"--socket-dir={FOLDER}", "--speaker=disabled", "--microphone=disabled", "--dbus-launch="]
    words += ["--sharing=no", "--lock=no", "--exit-with-children=no", "--input-method=none", "--fake-xinerama=no"]
    words += ["--encodings=rgb,png", "--video-encoders=none", "--csc-modules=none", "--resize-display=no"]
    words += ["--start-via-proxy=no", "--proxy-start-sessions=no", "--bandwidth-detection=no"]
    return words + [f"--{option}=no" for option in OFF]


class Session:
    """The display's processes: X, the user's programs, xpra, and a window manager in FULLSCREEN mode."""

    def __init__(self, user: pwd.struct_passwd) -> None:
        self.user = user
        self.environment = make_environment(user)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.mode = ""
        self.layout = ""
        self.failures = 0
        self.retry_at = 0.0

    def start(self, name: str, words: list[str], extra: dict[str, str] | None = None) -> None:
        """Start one of the processes, as the user."""
        groups = os.getgrouplist(self.user.pw_name, self.user.pw_gid)
        self.processes[name] = subprocess.Popen(
            words,
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=groups,
            cwd=self.user.pw_dir if os.path.isdir(self.user.pw_dir) else "/",
            env={**self.environment, **(extra or {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self, name: str) -> None:
        """End one of the processes; one that does not end is killed."""
        process = self.processes.pop(name, None)
        if process:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def is_running(self, name: str) -> bool:
        """Tell whether one of the processes runs."""
        return name in self.processes and self.processes[name].poll() is None

    def open_display(self) -> None:
        """Start X and the user's programs, and say that the display is there. Raises RuntimeError."""
        prepare_folder(self.user)
        size = read_size(CONFIG)
        words = ["Xvfb", DISPLAY, "-screen", "0", f"{size}x24", "-nolisten", "tcp", "-noreset", "-auth", AUTHORITY]
        self.start("X", words)
        deadline = time.monotonic() + X_WAIT
        while not is_served(X_SOCKET):
            if not self.is_running("X") or time.monotonic() >= deadline:
                raise RuntimeError(f"the X display {DISPLAY} did not start: run '{' '.join(words)}' to see why")
            time.sleep(0.02)
        text = f"DISPLAY={DISPLAY}\nXAUTHORITY={AUTHORITY}\n"
        for kind, content in (("environment", text), ("session", "")):
            write_file(f"{RUN}/{kind}.{self.user.pw_name}", content)
        self.set_layout(read_layout(LAYOUT_FILE))
        self.start("programs", ["/bin/sh", "-l", PROGRAMS])
        self.start("autostart", ["/bin/sh", "-l", "-c", 'exec "$0" "$1"', sys.executable, AUTOSTART])

    def set_layout(self, layout: str) -> None:
        """Give the display a keyboard layout; without one it keeps what it has until the host's client says more."""
        self.layout = layout
        if layout:
            self.start("keyboard", [sys.executable, "-I", KEYBOARD, layout])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes["keyboard"].wait(GRACE)

    def forward(self, mode: str) -> None:
        """Begin to forward the display in a mode."""
        for name in ("xpra", "manager"):
            self.stop(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)
        self.mode = mode
        manager = next(filter(None, map(shutil.which, MANAGERS)), "")
        if mode == FULLSCREEN and manager:
            self.start("manager", [manager])
        # No settings but these: the distribution's would have xpra start a session of its own.
        nowhere = {"XPRA_SYSTEM_CONF_DIRS": "/nonexistent", "XPRA_USER_CONF_DIRS": "/nonexistent"}
        self.start("xpra", list_xpra_words(mode, self.layout), nowhere)

    def look(self) -> bool:
        """Do what is to be done now; return whether the display goes on."""
        if not self.is_running("X"):
            return False
        mode, layout, now = read_mode(MODE_FILE), read_layout(LAYOUT_FILE), time.monotonic()
        was_own = bool(self.layout)
        if layout != self.layout:
            self.set_layout(layout)
        if mode != self.mode or bool(layout) != was_own:
            self.forward(mode)
        elif not self.is_running("xpra"):
            if not self.retry_at:
                self.retry_at = now + PAUSES[min(self.failures, len(PAUSES) - 1)]
                self.failures += 1
            elif now >= self.retry_at:
                self.retry_at = 0.0
                self.forward(mode)
        return True

    def close(self) -> None:
        """End everything."""
        for kind in ("session", "environment"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{RUN}/{kind}.{self.user.pw_name}")
        for name in ("xpra", "manager", "keyboard", "autostart", "programs", "X"):
            self.stop(name)


def prepare_folder(user: pwd.struct_passwd) -> None:
    """Make the user's own folder, with a new cookie, and the folder in which X listens."""
    os.makedirs(RUN, 0o755, exist_ok=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.mkdir(FOLDER, 0o700)
    write_file(AUTHORITY, make_authority(secrets.token_bytes(16)).decode("latin-1"), 0o600)
    for path in (FOLDER, AUTHORITY):
        os.chown(path, user.pw_uid, user.pw_gid)
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(X_SOCKET))
        os.chmod(os.path.dirname(X_SOCKET), 0o1777)  # noqa: S103  as X itself makes it
    for left in (X_SOCKET, X_LOCK):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)


def write_file(path: str, content: str, mode: int = 0o644) -> None:
    """Write a whole file by renaming it into its place."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(fd, "w", encoding="latin-1") as file:
        file.write(content)
    os.rename(path + ".new", path)


def main() -> int:
    """Run the session until X ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    session = None
    try:
        session = Session(find_user())
        session.open_display()
        while session.look():
            time.sleep(LOOK)
        log("the X display has ended; it is started again")
    except (LookupError, OSError, RuntimeError) as error:
        log(str(error))
        time.sleep(5)  # init starts it again at once
    finally:
        if session:
            session.close()
    return 1


if __name__ == "__main__":
    sys.exit(main())
