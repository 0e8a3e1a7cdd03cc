"""What QEMU's guest agent is told to start for a command of a call. Pure: no I/O.

The agent runs one program as root, without a terminal, and knows nothing of services or users. So it is a shell that
becomes the user, with runuser or su, whichever is there, in a session of its own, which runuser must not leave: then
all of a command can be ended.
"""

from crannog.errors import RpcError

SHELL = "/bin/sh"
_DEFAULT_USER = "root"
"""Whom DEFAULT means when nobody chose a user: whom the agent runs as."""
_USER_MAX = 64

_RUN = """\
id -u -- "$1" >/dev/null 2>&1 || { echo "there is no user '$1' in this VM" >&2; exit 125; }
session=$(command -v setsid)
command -v runuser >/dev/null 2>&1 && exec $session runuser -l "$1" --session-command="$2"
command -v su >/dev/null 2>&1 && exec $session su -l "$1" -c "$2"
[ "$(id -u)" = "$(id -u -- "$1")" ] || { echo "this VM has neither runuser nor su to become '$1'" >&2; exit 125; }
export HOME=/root USER="$1" LOGNAME="$1"
cd
exec $session /bin/sh -lc "$2"
"""
_END = """\
kill -s TERM -- "-$1" || kill -s TERM "$1"
for second in 1 2 3; do sleep 1; kill -s 0 "$1" || exit 0; done
kill -s KILL -- "-$1" || kill -s KILL "$1"
"""
_SHELLS = {"qubes.VMShell": 'exec "${SHELL:-/bin/sh}"'}
_EXECS = frozenset({"qubes.VMExec", "qubes.VMExecGUI"})
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._")
_DIGITS = frozenset("0123456789ABCDEF")


def plan_command(command_line: bytes) -> list[str]:
    """Return the arguments of SHELL that run `USER:COMMAND`, the command being one for a shell, or a service.

    Raises RpcError, with a sentence for the caller, for what QEMU's agent cannot do.
    """
    try:
        user, _, command = command_line.decode().partition(":")
    except UnicodeDecodeError as error:
        raise RpcError("QEMU's guest agent takes commands in UTF-8 only; pass other bytes as input") from error
    command = command.removeprefix("nogui:")
    if command.startswith("QUBESRPC "):
        command = _plan_service(command.split(" ")[1])
    return ["-c", _RUN, "sh", _check_user(user), command]


def plan_end(pid: int) -> list[str]:
    """Return the arguments of SHELL that end a command: SIGTERM to its session, SIGKILL three seconds later."""
    return ["-c", _END, "sh", str(pid)]


def _check_user(user: str) -> str:
    if user == "DEFAULT":
        return _DEFAULT_USER
    if not 0 < len(user) <= _USER_MAX or user.startswith("-") or not user.isprintable():
        raise RpcError("that is not the name of a user")
    return user


def _plan_service(service: str) -> str:
    name, _, argument = service.partition("+")
    if name in _SHELLS:
        return _SHELLS[name]
    if name in _EXECS:
        return _decode_words(argument)
    raise RpcError(
        f"the service {name} needs Crannog's agent in the VM; QEMU's, which stands in for it, runs commands, "
        "qubes.VMShell and qubes.VMExec: install the package crannog-guest there"
    )


def _decode_words(argument: str) -> str:
    """Return the encoded command of qubes.VMExec as one for a shell."""
    from shlex import join

    try:
        return "exec " + join([_decode(word) for word in argument.split("+")])
    except ValueError as error:
        raise RpcError("the argument of qubes.VMExec is no encoded command") from error


def _decode(word: str) -> str:
    """Return a word of it: `--` is a minus, `-HH` another byte. Raises ValueError."""
    found, at = bytearray(), 0
    while at < len(word):
        if word[at] in _PLAIN:
            found += word[at].encode()
            at += 1
        elif word[at : at + 2] == "--":
            found += b"-"
            at += 2
        elif word[at] == "-" and len(word) >= at + 3 and _DIGITS.issuperset(word[at + 1 : at + 3]):
            found.append(int(word[at + 1 : at + 3], 16))
            at += 3
        else:
            raise ValueError(word)
    if 0 in found:
        raise ValueError(word)
    return found.decode()
