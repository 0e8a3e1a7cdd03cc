"""Tokens for copies: who may read a volume gets one, who may write another volume hands it in. Each is good once."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from crannog.errors import TokenNotFoundError

MAX_TOKENS = 64
MAX_AGE = 300
"""Seconds."""


@dataclass(frozen=True)
class Token:
    """What a token stands for: a VM by its UUID, and a volume of it."""

    uuid: str
    volume: str
    made: float


class Tokens:
    """The tokens that were not used yet. They are in memory only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens: dict[str, Token] = {}

    def make(self, uuid: str, volume: str) -> str:
        """Return a new token of 32 characters; when there are too many, the oldest one is void."""
        self._drop_old()
        while len(self._tokens) >= MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        text = secrets.token_hex(16)
        self._tokens[text] = Token(uuid, volume, self._clock())
        return text

    def take(self, text: str) -> Token:
        """Return what a token stands for, and make it void; raises TokenNotFoundError."""
        self._drop_old()
        token = self._tokens.pop(text, None)
        if token is None:
            raise TokenNotFoundError(
                f"there is no such token for a copy: each is good once, for {MAX_AGE} s; ask for another one with "
                "admin.vm.volume.CloneFrom"
            )
        return token

    def _drop_old(self) -> None:
        oldest = self._clock() - MAX_AGE
        self._tokens = {text: token for text, token in self._tokens.items() if token.made > oldest}
