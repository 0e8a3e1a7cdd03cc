"""crannogd: one process per home that owns the registry and the hypervisor. Everything is wired here, nowhere else."""

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import NoReturn

from crannog import __version__
from crannog.adapters.display.processes import DesktopDisplays
from crannog.adapters.hostdevices.sysfs import SysfsDevices
from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.lock import DAEMON
from crannog.config import Paths, Settings
from crannog.core.registry import Registry
from crannog.daemon.adoption import Adoption
from crannog.daemon.autostart import Autostart
from crannog.daemon.inventory import Inventory
from crannog.daemon.log_file import BoundedLog
from crannog.daemon.machines import Machines
from crannog.daemon.sockets import Served, build_policy_server, build_servers, raise_descriptor_limit, serving
from crannog.daemon.stalls import StallWatch
from crannog.daemon.world import World
from crannog.errors import CrannogError, DaemonError, HypervisorError, StorageError
from crannog.heap import settle
from crannog.hostfacts import read_boot_id, read_host_facts
from crannog.ports.hypervisor import Hypervisor
from crannog.rpc.agents import VMProcesses
from crannog.rpc.strays import discard_dead_sockets
from crannog.shortpath import provide_short_path

log = logging.getLogger("crannog.daemon")


def take_lock(paths: Paths) -> int:
    """Return the descriptor of the lock that makes this the only daemon of its home.

    The kernel drops the lock when the process ends, however it ends. Raises DaemonError when another daemon has it,
    StorageError when the home cannot be used.
    """
    try:
        os.makedirs(paths.home, mode=0o700, exist_ok=True)
        provide_short_path(paths.home)
        for folder in (paths.run, paths.logs, paths.pools):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = os.open(paths.daemon_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"crannogd cannot use {paths.home}: {error.strerror} ({error.filename})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode().strip() or "unknown"
        os.close(lock)
        raise DaemonError(
            f"crannogd runs already for {paths.home} (process {owner}); use it, or set CRANNOG_HOME to another folder"
        ) from None
    try:
        # Written in place and with a fixed width, which works on a full disk as well.
        os.pwrite(lock, f"{os.getpid():<15}\n".encode(), 0)
    except OSError as error:
        os.close(lock)
        raise StorageError(
            f"crannogd cannot write to {paths.daemon_lock}: {error.strerror}; free some space"
        ) from error
    return lock


def open_store(paths: Paths) -> tuple[FileStore, Registry]:
    """Return the store, whose lock is held from here on, and what it says."""
    store = FileStore(paths.store, paths.kernels)
    store.lock.acquire(DAEMON)
    registry = store.load()
    registry.host = read_host_facts()
    for remark in store.remarks:
        log.warning("%s: %s", paths.store, remark)
    return store, registry


async def correct_host_facts(hypervisor: Hypervisor, registry: Registry) -> None:
    """Take the hypervisor's word for what the host has, where it knows better than our kernel."""
    try:
        registry.host = await hypervisor.host_facts() or registry.host
    except HypervisorError as error:
        log.warning("%s", error)


def build_world(paths: Paths, settings: Settings, store: FileStore, registry: Registry, machines: Machines) -> World:
    """Choose the adapters."""
    return World(
        paths=paths,
        store=store,
        hypervisor=LibvirtHypervisor(paths, settings),
        agents=VMProcesses(paths, machines.xid),
        pools=open_pools(paths, registry.pools.values()),
        kernels=KernelPool(paths.kernels),
        host_devices=SysfsDevices(),
        displays=DesktopDisplays(paths),
    )


async def serve(paths: Paths, settings: Settings, ready: int | None) -> None:
    """Run the daemon until SIGTERM or SIGINT. VMs go on running when it ends."""
    store, registry = open_store(paths)
    machines = Machines()
    world = build_world(paths, settings, store, registry, machines)
    inventory = Inventory(world, registry, machines)
    StallWatch(world.hypervisor, registry, machines)
    await _recover(world, registry)
    world.hypervisor.listen(machines.change)
    async with opened(world, inventory):
        await correct_host_facts(world.hypervisor, registry)
        await Adoption(inventory.lifecycle).adopt()
        await inventory.preloading.vms.adopt()
        servers: list[Served] = [
            *build_servers(inventory, paths, settings),
            build_policy_server(inventory.policy, paths),
        ]
        raise_descriptor_limit()
        async with serving(servers):
            log.info("crannogd %s serves %s", __version__, paths.home)
            if ready is not None:
                announce_ready(ready)
            await _run(world, inventory)


async def _recover(world: World, registry: Registry) -> None:
    """Take away what earlier daemons left half-done."""
    volumes = [volume for vm in registry for volume in vm.volumes.values()]
    for name, pool in world.pools.items():
        for sentence in await pool.recover(frozenset(volume.vid for volume in volumes if volume.pool == name)):
            log.warning("%s", sentence)
    for sentence in world.memory_shelf.recover(frozenset(vm.uuid for vm in registry)):
        log.warning("%s", sentence)
    discard_dead_sockets(world.paths.run)


@contextlib.asynccontextmanager
async def opened(world: World, inventory: Inventory) -> AsyncIterator[None]:
    """Hold the hypervisor open. At the end each part is closed, also where one before it fails."""
    await world.hypervisor.open()
    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_callback(world.hypervisor.close)
        ends.push_async_callback(world.displays.close_all)
        ends.push_async_callback(world.agents.close)
        ends.push_async_callback(inventory.lifecycle.abandon_starts)
        yield


async def _run(world: World, inventory: Inventory) -> None:
    """Do what is done beside answering, until this process is told to stop."""
    autostart = Autostart(inventory.lifecycle, world.paths.autostart_mark, read_boot_id())
    autostart.begin()
    world.displays.prepare()
    running = (inventory.space.run(), inventory.preloading.run(), settle())
    watches = [asyncio.ensure_future(watch) for watch in running]
    await _until_told_to_stop()
    inventory.leases.close()
    for watch in watches:
        watch.cancel()
    await autostart.abandon()
    await inventory.preloading.abandon_seedling()


def announce_ready(ready: int) -> None:
    """Tell the tool that started us that calls are answered, and let go of its terminal."""
    with contextlib.suppress(BrokenPipeError):  # that tool was killed meanwhile: others come
        os.write(ready, b"1")
    os.close(ready)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


async def _until_told_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="crannogd",
        description="Owns the VMs below CRANNOG_HOME. The tools start it when they need it.",
    )
    parser.add_argument("--log-stderr", action="store_true", help="log to the terminal instead of the log file")
    parser.add_argument("--verbose", action="store_true", help="log every request as well")
    parser.add_argument("--ready-fd", type=int, help="write to this descriptor when requests are answered")
    parser.add_argument("--version", action="version", version=f"crannogd {__version__}")
    return parser.parse_args()


def main() -> NoReturn:
    """Run crannogd, and exit."""
    options = parse_arguments()
    os.umask(0o077)
    os.chdir("/")
    paths = Paths()
    code = _serve_until_the_end(paths, options)
    # Python would wait for its threads, one of which may be in a libvirt call that does not end. The lock goes with
    # the process, so that the next daemon finds the hypervisor free.
    logging.shutdown()
    os._exit(code)


def _serve_until_the_end(paths: Paths, options: argparse.Namespace) -> int:
    try:
        take_lock(paths)
        logging.raiseExceptions = False  # a log on a full disk is no reason to complain on top of it
        logging.basicConfig(
            level=logging.DEBUG if options.verbose else logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            handlers=[logging.StreamHandler() if options.log_stderr else BoundedLog(paths.daemon_log)],
        )
        asyncio.run(serve(paths, Settings.load(paths.settings), options.ready_fd))
    except CrannogError as error:
        print(f"crannogd: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        log.critical("crannogd ends because of a fault of its own", exc_info=True)
        sentence = f"it ends because of a fault of its own; report what {paths.daemon_log} says of it"
        print(f"crannogd: {sentence}", file=sys.stderr)
        return CrannogError.exit_code
    return 0


if __name__ == "__main__":
    main()
