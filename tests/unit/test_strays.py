"""Processes that nobody owns are ended, and no others. Real processes stand for QEMU and for RPC processes."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from crannog.adapters.libvirt.strays import end_strays as end_emulators
from crannog.rpc.strays import end_strays as end_rpc

UUID = str(uuid4())
IDLE = "import time; print(flush=True); time.sleep(60)"
Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run() -> Iterator[Run]:
    """Return what starts a process with words on its command line; it runs once this returns."""
    processes = []

    def start(*words: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-S", "-c", IDLE, *words], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout
        process.stdout.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def emulator(
    run: Run, *words: str, uuid: str = UUID, name: str = "guest=work,debug-threads=on"
) -> "subprocess.Popen[bytes]":
    return run("-name", name, "-uuid", uuid, *words)


def test_a_qemu_of_ours_without_a_domain_is_ended(run: Run) -> None:
    process = emulator(run)
    (sentence,) = end_emulators(frozenset((UUID,)), frozenset(), "/nowhere")
    assert process.wait(60) == -signal.SIGKILL
    assert f"process {process.pid}: a QEMU of {UUID}" in sentence


def test_a_qemu_with_files_of_this_home_is_ended(run: Run) -> None:
    process = emulator(run, "path=/home/me/vmm/lib/qemu/domain-1-work/monitor.sock")
    assert len(end_emulators(frozenset(), frozenset(), "/home/me/vmm")) == 1
    assert process.wait(60) == -signal.SIGKILL


def test_other_processes_go_on(run: Run) -> None:
    with_domain, stranger = emulator(run), emulator(run, uuid=str(uuid4()))
    by_hand, no_emulator = emulator(run, name="mine", uuid=str(uuid4())), run("/home/me/vmm/x")
    neighbour = emulator(run, "/home/me/vmm2/x", uuid=str(uuid4()))
    assert end_emulators(frozenset((UUID,)), frozenset((UUID,)), "/home/me/vmm") == []
    assert all(p.poll() is None for p in (with_domain, stranger, by_hand, no_emulator, neighbour))


def rpc(run: Run, socket: str) -> "subprocess.Popen[bytes]":
    return run("-m", "crannog.rpc.vm_process", "--name", "work", "--listen", socket)


def test_an_rpc_process_that_serves_nobody_is_ended(run: Run) -> None:
    stray, adopted = rpc(run, "/run/here/rpc-old.sock"), rpc(run, "/run/here/rpc-work.sock")
    elsewhere = rpc(run, "/run/there/rpc-old.sock")
    (sentence,) = end_rpc("/run/here", {"/run/here/rpc-work.sock": None})
    assert "rpc-old.sock" in sentence
    assert stray.wait(60) == -signal.SIGKILL
    assert (adopted.poll(), elsewhere.poll()) == (None, None)


def test_an_rpc_process_that_got_a_successor_is_ended(run: Run) -> None:
    old, new = rpc(run, "/run/here/rpc-work.sock"), rpc(run, "/run/here/rpc-work.sock")
    assert len(end_rpc("/run/here", {"/run/here/rpc-work.sock": new.pid})) == 1
    assert (old.wait(60), new.poll()) == (-signal.SIGKILL, None)


async def test_nothing_to_do() -> None:
    assert await asyncio.to_thread(end_rpc, "/run/nowhere", {}) == []
