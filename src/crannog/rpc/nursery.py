"""The parent of the RPC processes: it has loaded all that they need, and forks one for each VM, on crannogd's word.

What is loaded once is in memory once, however many VMs run, and a child begins at once. This process has one thread,
reads nothing of guests, and ends with the crannogd that started it; its children go on. While it lives, it buries
them; later init does.
"""

import errno
import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from crannog.rpc import nursery_messages as messages
from crannog.rpc import vm_process
from crannog.rpc.command_line import rewrite_command_line
from crannog.rpc.nursery_messages import Birth

LOADED = ("crannog.config", "crannog.rpc.errand", "crannog.rpc.errand_start", "crannog.rpc.qga")
"""What a child would load later: at the first call of its guest, or when that has QEMU's guest agent alone."""


class Nursery:
    """Answers crannogd, and buries children that have ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        """The children's pidfds."""

    def run(self) -> None:
        """Serve until crannogd ends."""
        is_wanted = True
        while is_wanted:
            poll = select.poll()
            for fd in (self._control.fileno(), *self._children):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd in self._children:
                    self._bury(fd)
                else:
                    is_wanted = self._serve()

    def _bury(self, pidfd: int) -> None:
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG):
            self._children.remove(pidfd)
            os.close(pidfd)

    def _serve(self) -> bool:
        """Answer one request; return False when there is none, and never will be."""
        try:
            birth, fds = receive_birth(self._control)
        except (EOFError, ConnectionError):
            return False
        try:
            # The kernel leaves out what this process may not open (unix(7)).
            answer, pidfds = self._bear(birth, *fds) if len(fds) == messages.FDS else (-errno.EMFILE, [])
        finally:
            for fd in fds:
                os.close(fd)
        with suppress(ConnectionError):  # the next request will not come either
            socket.send_fds(self._control, [messages.ANSWER.pack(answer)], pidfds)
        return True

    def _bear(self, birth: Birth, stdin: int, log: int) -> tuple[int, list[int]]:
        """Return the child's number and pidfd; or why there is none."""
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or 1), []
        if pid == 0:
            be_child(birth, stdin, log)
        try:
            pidfd = os.pidfd_open(pid)  # it is this child's: nobody else buries it
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -(error.errno or 1), []
        self._children.add(pidfd)
        return pid, [pidfd]


def receive_birth(control: socket.socket) -> tuple[Birth, list[int]]:
    """Return a request, with its descriptors. Raises EOFError when crannogd has ended."""
    header, fds, _, _ = socket.recv_fds(control, messages.HEADER.size, messages.FDS, socket.MSG_CMSG_CLOEXEC)
    if len(header) < messages.HEADER.size:
        raise EOFError
    (length,) = messages.HEADER.unpack(header)
    body = bytearray()
    while len(body) < length:
        part = control.recv(length - len(body))
        if not part:
            raise EOFError
        body += part
    return Birth.decode(bytes(body)), fds


def be_child(birth: Birth, stdin: int, log: int) -> None:
    """Be the RPC process of a VM. Never returns; of the parent's files none is open here."""
    code = 1
    try:
        os.setsid()
        os.dup2(stdin, 0)  # in the place of the socket to crannogd
        os.dup2(log, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if os.read(0, 1) == messages.GO:
            code = _live(birth)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception as error:  # noqa: BLE001 - a child must never go on as its parent
        with suppress(OSError):
            os.write(2, f"{birth.place.vm}: ended by a mistake of ours: {error!r}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _live(birth: Birth) -> int:
    os.environ.clear()
    os.environ.update(birth.environment)
    words = birth.place.command()
    if not _has_command_line(words):
        # Who serves which VM must be seen, so that an RPC process that serves nobody is found: this one costs more.
        os.execve(words[0], words, os.environ)  # noqa: S606
    gc.enable()
    return vm_process.run(birth.place, starter=0)


def _has_command_line(words: list[str]) -> bool:
    try:
        return rewrite_command_line(words)
    except OSError:
        return False


def main() -> int:
    """Be the parent, for the crannogd at the other end of standard input; return the exit code."""
    gc.disable()
    for name in LOADED:
        __import__(name)
    gc.collect()
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with suppress(OSError):
        rewrite_command_line([sys.executable, "-I", "-m", "crannog.rpc.nursery"])  # without the room for the children's
    Nursery(socket.socket(fileno=0)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
