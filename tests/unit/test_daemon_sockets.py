"""Which sockets are served, and to whom: modes, groups, and callers of other users."""

import asyncio
import contextlib
import grp
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from stat import S_IMODE, S_ISSOCK

import pytest

from crannog.api.server import Server
from crannog.api.table import Family
from crannog.config import SYSTEM_HOME, Paths, Settings
from crannog.daemon.main import announce_ready
from crannog.daemon.sockets import build_servers, raise_descriptor_limit, serving
from crannog.errors import DaemonError, ValueRefusedError
from tests.fakes import Inside, build_inside, short_folder, template_and_app
from tests.unit.api_world import LIST, PATIENCE, Client, ask, descriptor_limit, open_descriptors

IS_ROOT = os.geteuid() == 0
GROUP = 54321 if IS_ROOT else os.getegid()
"""Number of a group that may call: one that only root can give to a file, or our own."""
STRANGER = 54322
MEMBER, OTHER = 54323, 54324


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a folder that other users can reach the sockets in."""
    with short_folder() as home:
        home.chmod(0o755)
        (home / "open").mkdir()
        (home / "open").chmod(0o777)
        yield home


@pytest.fixture
async def inside(home: Path) -> Inside:
    inside = build_inside(home)
    template_and_app(inside.registry)
    return inside


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make group `callers` one that there is."""

    def find(name: str) -> grp.struct_group:
        if name != "callers":
            raise KeyError(name)
        return grp.struct_group((name, "x", GROUP, []))

    monkeypatch.setattr(grp, "getgrnam", find)
    return GROUP


def settings(**values: str) -> Settings:
    chosen = Settings()
    for name, value in values.items():
        assert hasattr(chosen, name)
        setattr(chosen, name, value)
    return chosen


def shared_settings(home: Path) -> Settings:
    names = ("api_socket", "internal_socket", "misc_socket")
    return settings(**{name: str(home / "open" / name) for name in names}, api_group="callers")


def described(servers: list[Server]) -> list[tuple[Family, str, int | None]]:
    return [(server.family, server._path, server._group) for server in servers]


# -- which


def own(paths: Paths) -> list[tuple[Family, str, int | None]]:
    return [
        (Family.PUBLIC, paths.run + "/crannogd.sock", None),
        (Family.INTERNAL, paths.run + "/crannogd.internal.sock", None),
        (Family.MISC, paths.run + "/crannogd.misc.sock", None),
    ]


async def test_a_home_has_three_sockets_for_its_user(inside: Inside) -> None:
    assert described(build_servers(inside.inventory, inside.paths, Settings())) == own(inside.paths)


async def test_the_settings_name_more(inside: Inside, group: int) -> None:
    paths = inside.paths
    chosen = settings(api_socket="/a", misc_socket="/m", api_group="callers")
    more = [(Family.PUBLIC, "/a", group), (Family.MISC, "/m", group)]
    assert described(build_servers(inside.inventory, paths, chosen)) == own(paths) + more
    chosen = settings(internal_socket="/i")
    more_ = [(Family.INTERNAL, "/i", None)]
    assert described(build_servers(inside.inventory, paths, chosen)) == own(paths) + more_


@pytest.mark.parametrize("is_there", [True, False])
async def test_the_systems_home_serves_where_others_look(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    def find(name: str) -> grp.struct_group:
        if name != "qubes" or not is_there:
            raise KeyError(name)
        return grp.struct_group((name, "x", 98, []))

    monkeypatch.setattr(grp, "getgrnam", find)
    paths = Paths(SYSTEM_HOME, "/cache")
    group = 98 if is_there else None
    assert described(build_servers(inside.inventory, paths, settings(misc_socket="/m"))) == [
        *own(paths),
        (Family.PUBLIC, "/var/run/qubesd.sock", group),
        (Family.INTERNAL, "/var/run/qubesd.internal.sock", group),
        (Family.MISC, "/m", group),
    ]


async def test_a_group_that_is_not_there(inside: Inside, group: int) -> None:
    assert group
    with pytest.raises(ValueRefusedError, match=r"api_group = 'nobodies' in .*crannog.toml: there is no such group"):
        build_servers(inside.inventory, inside.paths, settings(api_group="nobodies"))


# -- how


async def test_modes_and_groups(inside: Inside, home: Path, group: int) -> None:
    servers = build_servers(inside.inventory, inside.paths, shared_settings(home))
    before = os.umask(0)
    os.umask(before)
    async with serving(servers):
        assert os.umask(before) == before
        for server in servers:
            status = os.stat(server._path)
            assert S_ISSOCK(status.st_mode)
            assert status.st_uid == os.geteuid()
            is_own = server._path.startswith(inside.paths.run)
            assert S_IMODE(status.st_mode) == (0o600 if is_own else 0o660)
            assert is_own or status.st_gid == group
    assert not any(os.path.exists(server._path) for server in servers)


async def test_each_socket_serves_its_family(inside: Inside, home: Path, group: int) -> None:
    assert group
    async with serving(build_servers(inside.inventory, inside.paths, shared_settings(home))):
        calls = {
            Family.PUBLIC: b"admin.vmclass.List",
            Family.INTERNAL: b"internal.GetSystemInfo",
            Family.MISC: b"qubes.NotifyUpdates",
        }
        for server in build_servers(inside.inventory, inside.paths, shared_settings(home)):
            for family, name in calls.items():
                payload = b"0" if family is Family.MISC else b""
                reply = await ask(server._path, name + b"+ dom0 name dom0\0" + payload)
                refused = b"2\0ProtocolError\0ProtocolError\0no such method: '%s'\0" % name
                assert reply.startswith(b"0\0") if server.family is family else reply == refused


async def test_sockets_that_a_dead_daemon_left(inside: Inside, home: Path, group: int) -> None:
    assert group
    servers = build_servers(inside.inventory, inside.paths, shared_settings(home))
    for server in servers:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(server._path)
    async with serving(servers):
        for server in servers:
            assert (await ask(server._path, LIST))[:2] in (b"0\0", b"2\0")


@pytest.mark.parametrize("number", [0, 2, 4])
async def test_one_that_is_served_already_leaves_none(inside: Inside, home: Path, group: int, number: int) -> None:
    assert group
    servers = build_servers(inside.inventory, inside.paths, shared_settings(home))
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(servers[number]._path)
        living.listen()
        with pytest.raises(DaemonError, match=f"socket already exists: {servers[number]._path} is served by another"):
            async with serving(servers):
                pytest.fail("it is served")
        assert [os.path.exists(server._path) for server in servers] == [
            index == number for index in range(len(servers))
        ]
        living.settimeout(60)
        with Client(servers[number]._path):  # it goes on being served by whoever serves it
            for _ in range(2):
                living.accept()[0].close()
    assert open_descriptors() == before


async def test_one_that_cannot_be_made_leaves_none(inside: Inside, home: Path) -> None:
    servers = build_servers(inside.inventory, inside.paths, settings(api_socket=str(home / "absent" / "a.sock")))
    with pytest.raises(DaemonError, match=r"crannogd cannot listen at .*absent/a\.sock"):
        async with serving(servers):
            pytest.fail("it is served")
    assert not any(os.path.exists(server._path) for server in servers)


async def test_a_group_that_cannot_be_given(inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = open_descriptors()
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(DaemonError, match="Operation not permitted"):
        await Server(inside.inventory, str(home / "open" / "a.sock"), Family.PUBLIC, GROUP).start()
    assert open_descriptors() == before


async def test_all_is_taken_away_when_the_daemon_fails(inside: Inside) -> None:
    servers = build_servers(inside.inventory, inside.paths, Settings())
    with pytest.raises(ZeroDivisionError):
        async with serving(servers):
            raise ZeroDivisionError
    assert not any(os.path.exists(server._path) for server in servers)


def test_the_descriptor_limit_is_raised_and_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with descriptor_limit(512):
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65536), hard)
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65536), hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


# -- who


class Peer:
    """The other end of a connection, as the kernel describes it (unix(7), socket(7))."""

    def __init__(self, user: int, group: int, *groups: int, tells_groups: bool = True) -> None:
        self.user, self.group, self.groups, self.tells_groups = user, group, groups, tells_groups

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == socket.SOL_SOCKET
        if option == socket.SO_PEERCRED:
            return struct.pack("3i", 1, self.user, self.group)[:size]
        assert option == 59  # SO_PEERGROUPS
        if not self.tells_groups or len(self.groups) * 4 > size:
            raise OSError(34, "Numerical result out of range")
        return struct.pack(f"{len(self.groups)}I", *self.groups)


US = os.geteuid()


@pytest.mark.parametrize(
    ("peer", "own", "shared"),
    [
        (Peer(0, 0), True, True),
        (Peer(US, STRANGER), True, True),
        (Peer(STRANGER, STRANGER), False, False),
        (Peer(STRANGER, STRANGER, STRANGER, 0), False, False),
        (Peer(STRANGER, GROUP), False, True),
        (Peer(STRANGER, STRANGER, MEMBER, GROUP), False, True),
        (Peer(STRANGER, STRANGER, *range(60000, 60255), GROUP), False, True),
        (Peer(STRANGER, STRANGER, *range(60000, 60256), GROUP), False, False),
        (Peer(STRANGER, GROUP, tells_groups=False), False, True),
        (Peer(STRANGER, STRANGER, tells_groups=False), False, False),
        (Peer(-1, -1), False, False),
    ],
)
async def test_who_is_admitted(inside: Inside, peer: Peer, *, own: bool, shared: bool) -> None:
    assert Server(inside.inventory, "/a").admits(peer) is own  # type: ignore[arg-type]
    assert Server(inside.inventory, "/a", Family.PUBLIC, GROUP).admits(peer) is shared  # type: ignore[arg-type]


async def test_a_daemon_of_an_ordinary_user(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: MEMBER)
    server = Server(inside.inventory, "/a")
    peers = [Peer(0, 0), Peer(MEMBER, STRANGER), Peer(OTHER, 0)]
    assert [server.admits(peer) for peer in peers] == [True, True, False]  # type: ignore[arg-type]


async def test_a_real_peer_is_admitted(inside: Inside) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Server(inside.inventory, "/a").admits(ours)


def _call(path: str, user: int, group: int, groups: list[int]) -> bytes:
    """Make a call as another user; return what came, or the error. Runs in a process that ends with it."""
    os.setgroups(groups)
    os.setgid(group)
    os.setuid(user)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(path)
        except PermissionError:
            return b"no way in"
        with contextlib.suppress(BrokenPipeError):
            client.sendall(LIST)
            client.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                reply += chunk
        return reply or b"not a byte"


async def call_as(path: str, user: int, group: int, groups: list[int]) -> bytes:
    """Return what a process of another user gets for a call."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"failed"
        try:
            answer = _call(path, user, group, groups)
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(reading, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE)
        return os.read(reading, 65536)
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        os.waitpid(child, 0)  # noqa: ASYNC222 - it has answered and ends


@pytest.fixture
async def shared(inside: Inside, home: Path) -> AsyncIterator[str]:
    """Serve a socket for the members of the group; return its path."""
    server = Server(inside.inventory, str(home / "open" / "a.sock"), Family.PUBLIC, GROUP)
    async with serving([server]):
        yield server._path


@pytest.mark.parametrize(
    ("user", "group", "groups", "mode", "reply"),
    [
        (MEMBER, GROUP, [], 0o660, b"0\0work "),
        (MEMBER, MEMBER, [OTHER, GROUP], 0o660, b"0\0work "),
        (0, OTHER, [], 0o660, b"0\0work "),
        (STRANGER, STRANGER, [OTHER], 0o660, b"no way in"),
        (STRANGER, STRANGER, [OTHER], 0o666, b"not a byte"),
        (MEMBER, GROUP, [], 0o666, b"0\0work "),
    ],
)
async def test_callers_of_other_users(
    inside: Inside, shared: str, user: int, group: int, groups: list[int], mode: int, reply: bytes
) -> None:
    """The last ones have a way in, though they should not: who they are is looked at as well."""
    os.chmod(shared, mode)
    if IS_ROOT:
        assert (await call_as(shared, user, group, groups)).startswith(reply)
    server = Server(inside.inventory, "/a", Family.PUBLIC, GROUP)
    assert server.admits(Peer(user, group, *groups)) is reply.startswith(b"0")  # type: ignore[arg-type]


async def test_a_caller_of_another_user_at_the_homes_own_socket(inside: Inside) -> None:
    server = Server(inside.inventory, inside.paths.daemon_socket)
    async with serving([server]):
        os.chmod(inside.paths.run, 0o755)
        os.chmod(inside.paths.daemon_socket, 0o666)
        if IS_ROOT:
            assert await call_as(inside.paths.daemon_socket, MEMBER, GROUP, [0]) == b"not a byte"
        assert not server.admits(Peer(MEMBER, GROUP, 0))  # type: ignore[arg-type]
        assert (await ask(inside.paths.daemon_socket, LIST)).startswith(b"0\0work ")


def test_a_tool_that_is_gone_does_not_end_the_daemon_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_descriptors: None)  # this process goes on with its own stderr
    reader, writer = os.pipe()
    os.close(reader)
    announce_ready(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(writer)
