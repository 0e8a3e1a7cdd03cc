"""`crannog-qrexec-daemon`: the host's side of qrexec for a VM whose agent somebody else wrote.

Options, environment, exit codes and sockets are those of qrexec-daemon (qrexec protocol, "Flows"), as the programs that
start one expect.
"""

import argparse
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from crannog.errors import CrannogError, UsageError
from crannog.rpc import vchan
from crannog.rpc.endpoints import make_log
from crannog.rpc.qrexec_broker import QrexecBroker, explain
from crannog.rpc.qrexec_sockets import EVERYBODY, DaemonSocket
from crannog.rpc.spare_errands import SpareErrands

SOCKET_FOLDER = "/var/run/qubes"
LOG_FOLDER = "/var/log/qubes"
POLICY_SOCKET = "/run/qubes/policy.sock"
POLICY_PROGRAM = "/usr/bin/qrexec-policy-exec"
STARTUP_TIMEOUT = 60
TIMED_OUT = 3
ENDING = (signal.SIGTERM, signal.SIGINT)
FILES = 2048
"""Open files: six for each call of the guest, one for each client."""


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="crannog-qrexec-daemon", description="Serve qrexec for one VM whose agent is on a vchan."
    )
    parser.add_argument("-u", "--uuid", required=True, help="the VM's UUID")
    parser.add_argument("--socket-dir", default=SOCKET_FOLDER, help="where clients look for the VM")
    program_help = "what decides when there is no policy socket"
    parser.add_argument("-p", "--policy-program", default=POLICY_PROGRAM, help=program_help)
    parser.add_argument("--policy-socket", default=POLICY_SOCKET, help="who decides on the guest's calls")
    parser.add_argument("--log-dir", default=LOG_FOLDER, help="where qrexec.NAME.log is written")
    parser.add_argument("-D", "--direct", action="store_true", help="stay in the foreground, log to stderr")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing while waiting for the agent")
    parser.add_argument("domid", type=int, metavar="DOMID", help="the VM's number")
    parser.add_argument("name", metavar="NAME", help="the VM's name")
    parser.add_argument("default_user", nargs="?", default="user", metavar="DEFAULT_USER", help="whom DEFAULT means")
    options = parser.parse_args(arguments)
    if options.domid <= 0 or "/" in options.name or not options.name:
        parser.error("DOMID is the number of a VM, above 0, and NAME is its name")
    return options


def startup_timeout(environment: Mapping[str, str]) -> int:
    """Return the seconds that the agent has to come."""
    text = environment.get("QREXEC_STARTUP_TIMEOUT", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else STARTUP_TIMEOUT


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parse_options(arguments)
    try:
        if options.direct:
            return run_here(options)
        return run_behind(options)
    except CrannogError as error:
        sys.stderr.write(f"crannog-qrexec-daemon: {error}\n")
        return error.exit_code


def run_here(options: argparse.Namespace) -> int:
    """Be the daemon; return its exit code: 3 when the agent is late."""
    patience = 0 if "QREXEC_STARTUP_NOWAIT" in os.environ else startup_timeout(os.environ)
    return serve(options, lambda: signal.alarm(0), patience)


def _say_late(options: argparse.Namespace) -> int:
    seconds = startup_timeout(os.environ)
    sys.stderr.write(f"The qrexec agent of {options.name} did not come within {seconds} s; is the VM running?\n")
    return TIMED_OUT


def run_behind(options: argparse.Namespace) -> int:
    """Start the daemon in the background, and return when the agent is connected: 0; when it is late: 3; else 1."""
    log = open_log(f"{options.log_dir}/qrexec.{options.name}.log")
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        _be_daemon(options, log, tell)
    os.close(tell)
    os.close(log)
    if "QREXEC_STARTUP_NOWAIT" in os.environ:
        return 0
    if not options.quiet:
        sys.stderr.write(f"Waiting for the qrexec agent of {options.name}\n")
    if not select.select([ready], [], [], startup_timeout(os.environ))[0]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return _say_late(options)
    if os.read(ready, 1):
        return 0
    sys.stderr.write(f"The qrexec daemon of {options.name} failed; see {options.log_dir}/qrexec.{options.name}.log\n")
    return 1


def open_log(path: str) -> int:
    """Return the log's file; raises UsageError when it cannot be written."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
    except OSError as error:
        raise UsageError(f"the log {path} cannot be written: {error.strerror}; choose --log-dir") from error


def _be_daemon(options: argparse.Namespace, log: int, tell: int) -> None:
    """Be the background process. Never returns."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, fd)
        os.chdir("/")

        def announce() -> None:
            nonlocal tell
            if tell >= 0:
                with suppress(OSError):  # whoever started us may be gone
                    os.write(tell, b"+")
                os.close(tell)
                tell = -1

        code = serve(options, announce)
    except CrannogError as error:
        sys.stderr.write(f"{options.name}: {error}\n")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except Exception as error:  # noqa: BLE001 - a child must never go on as its parent
        sys.stderr.write(f"{options.name}: {explain(error)}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(options: argparse.Namespace, on_ready: Callable[[], object], patience: int = 0) -> int:
    """Serve until SIGTERM or SIGINT, or an alarm after `patience` seconds, if any. Raises InUseError, RpcError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
    folder = os.path.abspath(options.socket_dir)
    links = (options.name, f"uuid:{options.uuid}")
    sockets = DaemonSocket(folder, options.domid, links, EVERYBODY)
    log = make_log(options.name)
    broker = QrexecBroker(options.domid, sockets, options.default_user, _errands_of(options, folder), log)
    broker.on_ready = on_ready
    for number in ENDING:
        signal.signal(number, lambda *_: broker.ending.request(0))
    signal.signal(signal.SIGALRM, lambda *_: broker.ending.request(_say_late(options)))
    signal.alarm(patience)
    sockets.check()
    vchan.own_domain()
    try:
        broker.run()
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # to be told twice makes no difference
    return 0


def _errands_of(options: argparse.Namespace, folder: str) -> SpareErrands:
    """Return what starts the processes of calls. All that such a process needs is loaded here, once."""
    from crannog.config import Paths
    from crannog.rpc.qrexec_errand import Domain, QrexecErrand

    paths = Paths()
    domain = Domain(options.name, options.domid, (folder, paths.run), options.policy_socket, options.policy_program)
    return SpareErrands(lambda trigger: QrexecErrand(domain, paths, trigger).run)


if __name__ == "__main__":
    sys.exit(main())
