"""What the policy has decided, one JSON object a line. Guests can cause lines, so the file is bounded."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

from crannog.policy.decisions import Allow, Ask, Decision, Deny

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
"""Size at which the log becomes the old one, in the place of the one before."""
OLD = ".1"


class DecisionLog:
    """The log at one path."""

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells seconds since the epoch."""
        self._path = path
        self._clock = clock

    def note(self, decision: Decision, milliseconds: float) -> None:
        """Add a decision, and how long it took. A log that cannot be written stops nobody."""
        line = json.dumps(self._describe(decision, milliseconds), ensure_ascii=True) + "\n"
        try:
            with suppress(FileNotFoundError):
                if os.stat(self._path).st_size + len(line) > MAX_BYTES:
                    os.replace(self._path, self._path + OLD)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode("ascii"))
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)

    def _describe(self, decision: Decision, milliseconds: float) -> dict[str, object]:
        request = decision.request
        moment = self._clock()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
        told: dict[str, object] = {
            "time": f"{seconds}.{int(moment % 1 * 1000):03}Z",
            "source": request.source,
            "target": request.target,
            "service": request.service,
            "argument": request.argument,
            "decision": _NAMES[type(decision)],
            "rule": str(decision.rule.origin) if decision.rule else "",
            "ms": round(milliseconds, 3),
        }
        if isinstance(decision, Allow):
            told["called"] = decision.target
        if isinstance(decision, Deny):
            told["reason"] = decision.reason
        return told


_NAMES = {Allow: "allow", Deny: "deny", Ask: "ask"}
