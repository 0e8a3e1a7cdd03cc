"""What is asked of a policy, and what it answers."""

from dataclasses import dataclass

from crannog.policy.problems import Origin
from crannog.policy.rules import Rule


@dataclass(frozen=True, slots=True)
class Request:
    """A call that somebody wants to make. `argument` begins with `+`; `target` is what the caller named, unchecked."""

    service: str
    argument: str
    source: str
    """The VM that calls: who brings the request knows it, the caller does not choose it."""
    target: str
    requested_source: str = ""
    """The RemoteVM that the caller, its relay, says it speaks for."""
    assume_yes: bool = False
    """Take `ask` as what the user would get who says yes."""
    just_evaluate: bool = False
    """Nothing will be called: only whether it could be is wanted."""

    @property
    def call(self) -> str:
        """The service with its argument."""
        return self.service + self.argument


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may be made, now."""

    request: Request
    rule: Rule
    target: str
    """A VM's name, `dom0`, or `@dispvm:NAME` for a new disposable of NAME."""
    target_uuid: str
    """`uuid:UUID` or `@dispvm:uuid:UUID`; empty for dom0."""
    requested_target: str
    """What the caller asked for, as the service is told: a name, or a keyword such as `@default`."""
    user: str | None
    """Whom the service runs as; None is the VM's default user."""
    notify: bool
    autostart: bool
    service: str = ""
    """What is called instead: the relay's service, when the target is a RemoteVM behind it."""
    policy_source: str = ""
    """The RemoteVM that the rules were asked for, when it is not the caller itself."""

    @property
    def origin(self) -> Origin:
        """Where the rule stands."""
        return self.rule.origin


@dataclass(frozen=True, slots=True)
class Deny:
    """The call may not be made. `reason` is for the log and the user, never for the caller."""

    request: Request
    reason: str
    rule: Rule | None = None
    """The rule that says so, if one matched."""
    notify: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """The user decides: whether, and where. See `evaluator.confirm` for the answer."""

    request: Request
    rule: Rule
    targets: tuple[str, ...]
    """What the user may choose from, as in `Allow.target`. Never empty."""
    default_target: str | None
    """One of the targets, chosen beforehand."""
    requested_target: str
    user: str | None
    notify: bool
    autostart: bool
    policy_source: str = ""

    @property
    def origin(self) -> Origin:
        """Where the rule stands."""
        return self.rule.origin


Decision = Allow | Deny | Ask
