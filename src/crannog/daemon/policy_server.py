"""The socket at which the policy is asked about calls (qrexec protocol, "Policy daemon"), and whoever asks the user.

Requests come from RPC processes, which read what guests send; they are parsed once, by policy.answers.
"""

import asyncio
import json
import logging
import os
import time
from contextlib import suppress

from crannog.daemon.decision_log import DecisionLog
from crannog.daemon.policy import PolicyKeeper
from crannog.errors import DaemonError, ProtocolError
from crannog.policy.answers import MAX_REQUEST, format_reply, parse_request
from crannog.policy.decisions import Allow, Ask, Deny
from crannog.policy.evaluator import confirm

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""Seconds in which a request must be complete."""
ASK_SECONDS = 60.0
"""Seconds after which a question that nobody has answered is a refusal."""
ASKED_AT_ONCE = 16
"""Most questions that are open; further ones are refused, so that a guest cannot bury the user in them."""
CONNECTIONS_MAX = 1024
_ANSWER_MAX = 4096
_ASK, _NOTIFY = b"policy.Ask dom0 name dom0\0", b"policy.Notify dom0 name dom0\0"


class PolicyServer:
    """Serves one socket, for its own user and root."""

    def __init__(self, keeper: PolicyKeeper, path: str, agent_path: str, decisions: DecisionLog) -> None:
        """`agent_path` is the socket of the program that asks the user."""
        self._keeper = keeper
        self._path = path
        self._agent_path = agent_path
        self._decisions = decisions
        self._server: asyncio.Server | None = None
        self._questions = 0
        self._chores: set[asyncio.Task[None]] = set()
        self._connections = 0
        self.ask_seconds = ASK_SECONDS

    async def start(self) -> None:
        """Listen; raises DaemonError when that is not possible. A socket that a dead daemon left is replaced."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST)
        except OSError as error:
            raise DaemonError(f"crannogd cannot listen at {self._path}: {error.strerror or error}") from error
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening, and take the socket away. Questions that are open are answered by nobody any more."""
        if self._server:
            self._server.close()
            self._server = None
            for chore in self._chores:
                chore.cancel()
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; what is no request gets no answer."""
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_SECONDS):
                    untrusted_data = await reader.readuntil(b"\n\n")
                reply = await self._answer(untrusted_data)
                writer.write(reply.encode("ascii"))
                await writer.drain()
        except ProtocolError as error:
            log.warning("policy: %s", error)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, untrusted_data: bytes) -> str:
        began = time.perf_counter()
        request = parse_request(untrusted_data)
        decision = self._keeper.decide(request)
        self._decisions.note(decision, (time.perf_counter() - began) * 1000)
        if isinstance(decision, Ask) and not request.just_evaluate:
            decision = await self._ask(decision)
            self._decisions.note(decision, (time.perf_counter() - began) * 1000)
        if not request.just_evaluate and not isinstance(decision, Ask):
            self._notify(decision)
        return format_reply(decision)

    # -- the user

    async def _ask(self, ask: Ask) -> Allow | Deny:
        """Have the user decide; nobody there, no answer in time, or nonsense, is no."""
        if self._questions >= ASKED_AT_ONCE:
            return Deny(ask.request, f"{ask.origin}: too many questions are open already", ask.rule)
        self._questions += 1
        try:
            async with asyncio.timeout(self.ask_seconds):
                answer = await self._tell_agent(_ASK, self._question(ask))
        except TimeoutError:
            return Deny(ask.request, f"{ask.origin}: nobody answered within {self.ask_seconds:.0f} s", ask.rule)
        except OSError as error:
            why = f"{self._agent_path}: {error.strerror or error}"
            reason = f"nobody is there to ask ({why}); run 'crannog policy agent'"
            return Deny(ask.request, f"{ask.origin}: {reason}", ask.rule)
        finally:
            self._questions -= 1
        if not answer:
            return Deny(ask.request, f"{ask.origin}: the program that asks gave no answer", ask.rule)
        action, _, target = answer.decode("ascii", "replace").strip().partition(":")
        return confirm(self._keeper.system, ask, target if action == "allow" else None)

    def _question(self, ask: Ask) -> dict[str, object]:
        system = self._keeper.system
        names = {target: target.rpartition(":")[2] for target in (*ask.targets, ask.request.source)}
        found = {target: system.find(name) for target, name in names.items()}
        return {
            "source": ask.request.source,
            "service": ask.request.service,
            "argument": ask.request.argument,
            "targets": list(ask.targets),
            "default_target": ask.default_target or "",
            "icons": {target: (vm.icon or "") if vm else "" for target, vm in found.items()},
        }

    async def _tell_agent(self, header: bytes, message: dict[str, object]) -> bytes:
        """Send something to the program that talks with the user; return its answer. Raises OSError."""
        reader, writer = await asyncio.open_unix_connection(self._agent_path)
        try:
            writer.write(header + json.dumps(message).encode("ascii"))
            writer.write_eof()
            answer = b""
            while block := await reader.read(_ANSWER_MAX - len(answer)):
                answer += block
            return answer
        finally:
            writer.close()

    def _notify(self, decision: Allow | Deny) -> None:
        """Have the user told of what was decided, where the rule wants that; nobody waits for it."""
        if not decision.notify or len(self._chores) >= ASKED_AT_ONCE or not os.path.exists(self._agent_path):
            return
        message: dict[str, object] = {
            "resolution": "allow" if isinstance(decision, Allow) else "deny",
            "source": decision.request.source,
            "service": decision.request.service,
            "argument": decision.request.argument,
            "target": decision.target if isinstance(decision, Allow) else decision.request.target,
        }
        chore = asyncio.ensure_future(self._notify_quietly(message))
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def _notify_quietly(self, message: dict[str, object]) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._tell_agent(_NOTIFY, message)
