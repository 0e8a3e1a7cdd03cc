"""Rules: one line of a policy file as a value (qrexec specification, section 5)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from crannog.core.kinds import parse_user
from crannog.errors import ValueRefusedError
from crannog.policy.problems import Origin, PolicyRefusedError, shown
from crannog.policy.tokens import Kind, Place, Token, parse_token

ANY = "*"
"""Any service, or any argument."""

_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ARGUMENT = re.compile(r"\+[A-Za-z0-9_.+-]*")
_LONGEST = 255
"""Longest service with its argument: what is longer is not looked up (section 4)."""


class Action(StrEnum):
    """What a rule does with a call that it matches."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `argument` begins with `+`, or is `*` as `service` may be."""

    service: str
    argument: str
    source: Token
    target: Token
    action: Action
    origin: Origin
    redirect: Token | None = None
    """Value of target=: where the call goes, whatever was asked for."""
    default_target: Token | None = None
    user: str | None = None
    notify: bool = False
    autostart: bool = True

    @property
    def reach(self) -> Token:
        """Where calls that match end: the redirect, or the target itself."""
        return self.redirect or self.target

    def __str__(self) -> str:
        words = [self.service, self.argument, str(self.source), str(self.target), str(self.action)]
        return " ".join(words + _format_options(self))


def _format_options(rule: Rule) -> list[str]:
    """Return the options that differ from what goes without saying."""
    texts = {"target": rule.redirect, "default_target": rule.default_target, "user": rule.user}
    words = [f"{key}={value}" for key, value in texts.items() if value is not None]
    if rule.notify is not (rule.action is Action.DENY):
        words.append(f"notify={'yes' if rule.notify else 'no'}")
    return words if rule.autostart else [*words, "autostart=no"]


def _read_redirect(untrusted_value: str) -> Token:
    return parse_token(untrusted_value, Place.REDIRECT)


def _read_user(untrusted_value: str) -> str:
    try:
        user = parse_user(untrusted_value)
    except ValueRefusedError as error:
        raise PolicyRefusedError(str(error)) from None
    if not user or not user.isascii():
        raise PolicyRefusedError(f"{shown(untrusted_value)} is not a user name")
    return user


def _read_flag(untrusted_value: str) -> bool:
    if untrusted_value not in ("yes", "no"):
        raise PolicyRefusedError(f"it is yes or no, not {shown(untrusted_value)}")
    return untrusted_value == "yes"


_OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "target": ("redirect", _read_redirect),
    "default_target": ("default_target", _read_redirect),
    "user": ("user", _read_user),
    "notify": ("notify", _read_flag),
    "autostart": ("autostart", _read_flag),
}
"""For each option the field that it sets, and how its value is read."""

OPTIONS_OF = {
    Action.ALLOW: ("target", "user", "notify", "autostart"),
    Action.ASK: ("target", "default_target", "user", "notify", "autostart"),
    Action.DENY: ("notify",),
}
"""The options that each action may have."""


def parse_rule(untrusted_words: Sequence[str], origin: Origin) -> Rule:
    """Return the rule of a line's words; raises PolicyRefusedError with what is wrong and what is allowed."""
    if len(untrusted_words) < 5:
        raise PolicyRefusedError(
            f"a rule has five words and then options, here are {len(untrusted_words)}; "
            "write SERVICE +ARGUMENT SOURCE TARGET allow|ask|deny"
        )
    service, argument = parse_service(*untrusted_words[:2])
    source = parse_token(untrusted_words[2], Place.SOURCE)
    target = parse_token(untrusted_words[3], Place.TARGET)
    action = _parse_action(untrusted_words[4])
    options = _parse_options(action, untrusted_words[5:])
    rule = Rule(service, argument, source, target, action, origin, **options)  # type: ignore[arg-type]
    _check_target(rule)
    return rule


def parse_service(untrusted_service: str, untrusted_argument: str) -> tuple[str, str]:
    """Return a service and its argument as rules name them; raises PolicyRefusedError."""
    if untrusted_service != ANY and not _SERVICE.fullmatch(untrusted_service):
        raise PolicyRefusedError(f"{shown(untrusted_service)} is no service; it is a name such as qubes.Filecopy, or *")
    if untrusted_argument != ANY and not _ARGUMENT.fullmatch(untrusted_argument):
        raise PolicyRefusedError(
            f"{shown(untrusted_argument)} is no argument; it is * for any, + for none, or '+' and letters, digits, "
            "'_', '.', '+' and '-'"
        )
    if untrusted_service == ANY and untrusted_argument != ANY:
        raise PolicyRefusedError("a rule for any service is for any argument; write '* *'")
    if len(untrusted_service) + len(untrusted_argument) > _LONGEST:
        raise PolicyRefusedError(f"a service with its argument has at most {_LONGEST} characters")
    return untrusted_service, untrusted_argument


def _parse_action(untrusted_word: str) -> Action:
    try:
        return Action(untrusted_word)
    except ValueError:
        raise PolicyRefusedError(f"{shown(untrusted_word)} is no action; write allow, ask or deny") from None


def _parse_options(action: Action, untrusted_words: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {"notify": True} if action is Action.DENY else {}
    seen = set()
    for untrusted_word in untrusted_words:
        key, separator, untrusted_value = untrusted_word.partition("=")
        if not separator or key not in OPTIONS_OF[action]:
            known = ", ".join(f"{option}=" for option in OPTIONS_OF[action])
            raise PolicyRefusedError(f"{shown(untrusted_word)} is no option of {action}; allowed: {known}")
        if key in seen:
            raise PolicyRefusedError(f"{key}= is there twice; leave one")
        seen.add(key)
        field, read = _OPTIONS[key]
        values[field] = _read_value(key, read, untrusted_value)
    return values


def _read_value(key: str, read: Callable[[str], object], untrusted_value: str) -> object:
    try:
        return read(untrusted_value)
    except PolicyRefusedError as error:
        raise PolicyRefusedError(f"{key}= cannot be taken: {error}") from None


def _check_target(rule: Rule) -> None:
    if rule.action is Action.ALLOW and rule.target.kind is Kind.DEFAULT and rule.redirect is None:
        raise PolicyRefusedError("'allow' with the target @default leads nowhere; add target=VM")
