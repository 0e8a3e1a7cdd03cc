"""What a program sees from within the sandbox, asked from within."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crannog.display.sandbox import HOME, MEMORY_MAX, sandboxed

LOOK = """
import json, os, socket
def can_write(folder):
    try:
        open(folder + "/probe", "w").close()
        return True
    except OSError:
        return False
def reach(path):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        return True
    except OSError:
        return False
folders = ("/", "/etc", "/tmp", "/proc", "/var", "/var/cache", "/sys/class/net")
found = {path: os.listdir(path) for path in folders if os.path.isdir(path)}
sockets = []
for parent, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(parent, name) not in ("/proc", "/usr")]
    sockets += [os.path.join(parent, name) for name in names if os.path.exists(os.path.join(parent, name))
                and (os.stat(os.path.join(parent, name)).st_mode & 0o170000) == 0o140000]
print(json.dumps({
    "found": found, "sockets": sockets, "environment": dict(os.environ), "user": os.getuid(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "writable": [folder for folder in ("/", "/usr", "/etc", "/dev", "/tmp", "/dev/shm") if can_write(folder)],
    "reached": [path for path in json.loads(os.environ["TRY"]) if reach(path)],
}))
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder like the `run` of a home, with sockets of two VMs that somebody serves."""
    with socket.socket(socket.AF_UNIX) as work, socket.socket(socket.AF_UNIX) as vault:
        for server, name in ((work, "rpc-work"), (vault, "rpc-vault")):
            server.bind(str(tmp_path / f"{name}.sock"))
            server.listen()
        yield tmp_path


def look(sockets: dict[str, str], tries: list[str]) -> dict[str, Any]:
    command = sandboxed(["/usr/bin/python3", "-I", "-c", LOOK], sockets, {"TRY": json.dumps(tries)})
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=30)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_it_reaches_the_socket_it_was_given_and_no_other(run_folder: Path) -> None:
    mine, other = str(run_folder / "rpc-work.sock"), str(run_folder / "rpc-vault.sock")
    seen = look({"/tmp/given": mine}, ["/tmp/given", mine, other])
    assert seen["sockets"] == ["/tmp/given"]
    assert seen["reached"] == ["/tmp/given"]


def test_it_sees_nothing_of_the_users(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    seen = look({}, [])
    found = seen["found"]
    allowed = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr", "var"}
    assert set(found["/"]) <= allowed
    assert set(found.get("/var", [])) <= {"cache"}
    assert set(found.get("/var/cache", [])) <= {"fontconfig"}
    assert not {"passwd", "shadow", "ssh", "crannog", "machine-id"} & set(found["/etc"])
    assert set(found["/tmp"]) == {"home", "runtime"}
    assert {name for name in found["/proc"] if name.isdigit()} == {"1", "2"}
    assert set(seen["environment"]) - {"LC_CTYPE"} == {"HOME", "LANG", "PATH", "PWD", "TRY", "XDG_RUNTIME_DIR"}


def test_it_has_no_network_and_writes_nowhere_but_to_its_own_memory() -> None:
    seen = look({}, [])
    assert seen["interfaces"] == ["lo"]
    assert seen["writable"] == ["/tmp", "/dev/shm"]
    assert seen["user"] == 1000


def test_its_memory_is_limited() -> None:
    command = sandboxed(["/usr/bin/python3", "-c", f"bytearray({MEMORY_MAX})"], {})
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=30)
    assert b"MemoryError" in done.stderr


def test_it_ends_with_whoever_started_it() -> None:
    script = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); input()"
    command = sandboxed(["sh", "-c", "echo here; exec sleep 60"], {})
    with subprocess.Popen(["/usr/bin/python3", "-c", script, *command], stdin=-1, stdout=-1) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"here\n"
        parent.kill()
        assert parent.stdout.read() == b""  # all that had the pipe open have ended


def test_the_environment_is_what_was_given() -> None:
    done = subprocess.run(
        sandboxed(["env"], {}, {"DISPLAY": ":9", "HOME": "/tmp"}), stdout=subprocess.PIPE, check=True, timeout=30
    )
    lines = done.stdout.decode().split()
    assert "DISPLAY=:9" in lines
    assert "HOME=/tmp" in lines
    assert f"HOME={HOME}" not in lines
