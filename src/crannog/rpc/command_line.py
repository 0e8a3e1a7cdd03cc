"""What `ps` shows of a process that does not begin with a program of its own."""

import os

_START, _END = 48, 49
"""The fields of /proc/PID/stat with the addresses between which the command line is (proc(5))."""


def rewrite_command_line(words: list[str]) -> bool:
    """Have this process shown with that command line; return False when it is longer than the one it has.

    Raises OSError where the kernel does not let a process write to its own memory in this way.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = (int(fields[number - 3]) for number in (_START, _END))
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    if len(line) > end - start:
        return False
    memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.pwrite(memory, line.ljust(end - start, b"\0"), start) == end - start
    finally:
        os.close(memory)
