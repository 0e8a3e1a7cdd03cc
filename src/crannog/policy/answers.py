"""The words in which policy is asked and answers (qrexec specification, section 6). Bytes in and out, no I/O."""

import re

from crannog.errors import ProtocolError
from crannog.policy.decisions import Allow, Decision, Request
from crannog.policy.system import SystemInfo

MAX_REQUEST = 4 * 65536
"""Longest request in bytes: a service of the longest kind, names, and more than enough room."""

MAX_EVALUATION = 96
"""How many bytes of input of policy.EvalSimple and policy.EvalGUI to read: none that is taken is longer."""

DEFAULT_USER = "DEFAULT"
DENY = "result=deny"
ALLOW = "result=allow"
GUI_TAG = "guivm-"

_REQUIRED = ("source", "intended_target", "service_and_arg")
_FLAGS = ("assume_yes_for_ask", "just_evaluate")
_KEYS = (*_REQUIRED, "requested_source", *_FLAGS)
_NAME = re.compile(r"[A-Za-z0-9_.@:-]*")
_CALL = re.compile(r"[A-Za-z0-9_.@:-][A-Za-z0-9_.@:+-]*")


def parse_request(untrusted_data: bytes) -> Request:
    """Return the request of the lines before the first empty one; raises ProtocolError: then nothing is answered."""
    if len(untrusted_data) > MAX_REQUEST:
        raise ProtocolError(f"a request for a decision is longer than {MAX_REQUEST} bytes")
    untrusted_head, end, _ = (b"\n" + untrusted_data).partition(b"\n\n")
    if not end:
        raise ProtocolError("a request for a decision has no empty line at its end")
    values = _parse_lines(_decode(untrusted_head[1:]))
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ProtocolError(f"a request for a decision has no {', '.join(missing)}")
    service, argument = parse_call(values["service_and_arg"])
    return Request(
        service,
        argument,
        source=values["source"],
        target=values["intended_target"],
        requested_source=values.get("requested_source", ""),
        assume_yes=values.get("assume_yes_for_ask") == "yes",
        just_evaluate=values.get("just_evaluate") == "yes",
    )


def _decode(untrusted_data: bytes) -> str:
    try:
        return untrusted_data.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("a request for a decision holds bytes that are not ASCII") from None


def _parse_lines(untrusted_text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for untrusted_line in untrusted_text.split("\n"):
        key, separator, untrusted_value = untrusted_line.partition("=")
        if not separator or key not in _KEYS:
            raise ProtocolError(f"a line of a request for a decision is none of {', '.join(_KEYS)}")
        if key in values:
            raise ProtocolError(f"a request for a decision has {key} twice")
        values[key] = _check_value(key, untrusted_value)
    return values


def _check_value(key: str, untrusted_value: str) -> str:
    pattern = _CALL if key == "service_and_arg" else _NAME
    if key in _FLAGS and untrusted_value not in ("yes", "no"):
        raise ProtocolError(f"{key} of a request for a decision is neither yes nor no")
    if not pattern.fullmatch(untrusted_value) or (key == "source" and not untrusted_value):
        raise ProtocolError(f"{key} of a request for a decision is empty or holds characters that are not allowed")
    return untrusted_value


def parse_call(untrusted_call: str) -> tuple[str, str]:
    """Return a service and its argument with the `+`; raises ProtocolError. Without an argument it is `+`."""
    if not _CALL.fullmatch(untrusted_call):
        raise ProtocolError("a service is empty, begins with '+', or holds characters that are not allowed")
    service, plus, argument = untrusted_call.partition("+")
    return service, (plus or "+") + argument


def format_reply(decision: Decision) -> str:
    """Return the answer to a request. What nobody has confirmed (Ask) is a refusal."""
    if not isinstance(decision, Allow):
        return DENY
    if decision.request.just_evaluate:
        return ALLOW
    lines = {
        "user": decision.user or DEFAULT_USER,
        "result": "allow",
        "target": decision.target,
        "target_uuid": decision.target_uuid,
        "autostart": str(decision.autostart),
        "requested_target": decision.requested_target,
        "service": decision.service,
        "policy_source": decision.policy_source,
    }
    return "\n".join(f"{key}={value}" for key, value in lines.items() if value)


def parse_evaluation(untrusted_argument: str, untrusted_input: bytes) -> Request:
    """Return what policy.EvalSimple or policy.EvalGUI is asked.

    Its argument is the call; its input is the source, a NUL, and the target. Raises ProtocolError: then nothing is
    answered. `ask` counts as allowed, since the user could say yes.
    """
    untrusted_source, separator, untrusted_target = _decode(untrusted_input).partition("\0")
    is_sized = 1 <= len(untrusted_source) <= 31 and 1 <= len(untrusted_target) <= 63
    if not separator or not is_sized:
        raise ProtocolError("the input is not a source of 1 to 31 bytes, a NUL and a target of 1 to 63 bytes")
    if not _NAME.fullmatch(untrusted_source) or not _NAME.fullmatch(untrusted_target):
        raise ProtocolError("the source or the target holds characters that are not allowed")
    service, argument = parse_call(untrusted_argument)
    return Request(service, argument, untrusted_source, untrusted_target, assume_yes=True, just_evaluate=True)


def may_evaluate_gui(system: SystemInfo, caller: str, request: Request) -> bool:
    """Tell whether a VM may ask policy.EvalGUI: it shows the windows of both the source and the target."""
    vms = [system.find(request.source), system.find(request.target)]
    return all(vm is not None and f"{GUI_TAG}{caller}" in vm.tags for vm in vms)


def format_evaluation(decision: Decision) -> str:
    """Return the answer of policy.EvalSimple and policy.EvalGUI."""
    return f"{ALLOW if isinstance(decision, Allow) else DENY}\n"
