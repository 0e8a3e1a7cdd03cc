"""Methods about the policy's files, for dom0 alone, and what it would decide (qrexec specification, section 6)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.editing.policies import Sort
from crannog.errors import DeniedError, ProtocolError
from crannog.policy.answers import MAX_EVALUATION, format_evaluation, may_evaluate_gui, parse_evaluation
from crannog.policy.decisions import Request

ADMIN, NEEDED = Destination.ADMIN, Presence.REQUIRED


def _check_dom0(call: Call) -> None:
    """Raise DeniedError for every other caller, whatever the policy says: who can change it could say anything."""
    if call.source.klass != "AdminVM":
        raise DeniedError(f"{call.method} is for dom0 alone; {call.source.name} may not call it")


def _list(call: Call, sort: Sort) -> str:
    _check_dom0(call)
    return "".join(f"{name}\n" for name in call.backend.policies.names(sort))


def _get(call: Call, sort: Sort) -> bytes:
    _check_dom0(call)
    token, data = call.backend.policies.read(sort, call.argument)
    return token.encode() + b"\n" + data


def _replace(call: Call, sort: Sort) -> None:
    _check_dom0(call)
    token, separator, data = call.payload.partition(b"\n")
    if not separator:
        raise ProtocolError("the payload is not a token, the end of its line, and the new content")
    call.backend.policies.replace(sort, call.argument, token.decode("ascii", "replace"), data)


def _remove(call: Call, sort: Sort) -> None:
    _check_dom0(call)
    token = call.payload.removesuffix(b"\n").decode("ascii", "replace")
    call.backend.policies.remove(sort, call.argument, token)


@method("policy.List", ADMIN)
def list_policies(call: Call) -> str:
    """Return the names of the policy files, without `.policy`, a line each."""
    return _list(call, Sort.POLICY)


@method("policy.Get", ADMIN, argument=NEEDED)
def get_policy(call: Call) -> bytes:
    """Return a policy file: a line with a token that stands for its content, then the content."""
    return _get(call, Sort.POLICY)


@method("policy.Replace", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def replace_policy(call: Call) -> None:
    """Write a policy file. The payload is a line with its token, `new` or `any`, then the content.

    Refused when the policy would get a problem by it.
    """
    _replace(call, Sort.POLICY)


@method("policy.Remove", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def remove_policy(call: Call) -> None:
    """Delete a policy file. The payload is its token, or `any`."""
    _remove(call, Sort.POLICY)


@method("policy.include.List", ADMIN)
def list_includes(call: Call) -> str:
    """Return the names of the files in the folder `include`, a line each."""
    return _list(call, Sort.INCLUDE)


@method("policy.include.Get", ADMIN, argument=NEEDED)
def get_include(call: Call) -> bytes:
    """Return a file of the folder `include`: a line with a token that stands for its content, then the content."""
    return _get(call, Sort.INCLUDE)


@method("policy.include.Replace", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def replace_include(call: Call) -> None:
    """Write a file of the folder `include`, as `policy.Replace` does."""
    _replace(call, Sort.INCLUDE)


@method("policy.include.Remove", ADMIN, argument=NEEDED, payload=NEEDED, access=Access.WRITE)
def remove_include(call: Call) -> None:
    """Delete a file of the folder `include`. The payload is its token, or `any`."""
    _remove(call, Sort.INCLUDE)


@method("policy.GetFiles", ADMIN, argument=NEEDED)
def get_files(call: Call) -> str:
    """Return the names of the files with rules about a service, a line each, in the order of the rules."""
    _check_dom0(call)
    return "".join(f"{name}\n" for name in call.backend.policies.files_of(call.argument))


@method("policy.EvalSimple", ADMIN, argument=NEEDED, payload=NEEDED, is_plain=True)
def evaluate_simple(call: Call) -> str:
    """Return `result=allow` or `result=deny` for a call: the argument is what is called, the payload who calls whom.

    The payload is the source, a NUL and the target. What the user would be asked about is allowed. The reply is that
    line alone; what is no question gets none.
    """
    return format_evaluation(call.backend.policy.decide(_read_question(call)))


@method("policy.EvalGUI", ADMIN, argument=NEEDED, payload=NEEDED, is_plain=True)
def evaluate_gui(call: Call) -> str:
    """Return what `policy.EvalSimple` does, to a VM that shows the windows of both source and target."""
    request = _read_question(call)
    if not may_evaluate_gui(call.backend.policy.system, call.source.name, request):
        raise DeniedError(f"{call.source.name} does not show the windows of both {request.source} and {request.target}")
    return format_evaluation(call.backend.policy.decide(request))


def _read_question(call: Call) -> Request:
    return parse_evaluation(call.argument, call.payload[: MAX_EVALUATION + 1])
