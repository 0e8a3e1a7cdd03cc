"""Whether the global clipboard may be pasted into a VM: the policy decides, as on a call of one VM to the other."""

from __future__ import annotations

from crannog.cli.clipboard_guest import PASTE
from crannog.cli.clipboard_store import Clip
from crannog.client.connection import Client
from crannog.errors import DeniedError, NotFoundError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.rpc.errand import Verdict


def list_uuids(client: Client) -> dict[str, str]:
    """Return the UUID of each VM, by name."""
    found = {}
    for line in client.text("admin.vm.List").splitlines():
        name, *words = line.split(" ")
        found[name] = dict(word.partition("=")[::2] for word in words).get("uuid", "")
    return found


def decide(client: Client, clip: Clip, vm: str) -> Verdict:
    """Return which VM gets the text, and as which user: mostly `vm`, unless a rule or the user chose another one.

    A VM gets its own text back without a question. Raises DeniedError when the policy, or the user, says no, and
    NotFoundError when the VM that had the text is gone.
    """
    from crannog.rpc.errand import HOST, Verdict, ask_policy
    from crannog.rpc.triggers import Trigger

    uuids = list_uuids(client)
    # Rules are about names: those of today, also of a VM that was renamed, or made anew under an old name.
    sources = [name for name, uuid in uuids.items() if clip.uuid and uuid == clip.uuid]
    if not sources:
        raise NotFoundError(f"{clip.vm}, which had the text, is gone, and with it what policy says; copy it anew")
    if sources[0] == vm:
        return Verdict(vm, vm, "DEFAULT", autostart=False)
    verdict = ask_policy(client.paths.policy_socket, sources[0], Trigger(b"", vm, f"{PASTE}+"))
    if verdict is None:
        raise DeniedError(
            f"the policy, or the user, does not let text of {sources[0]} be pasted into {vm}; "
            f"see 'crannog policy explain {PASTE} {sources[0]} {vm}'"
        )
    if verdict.target == HOST or verdict.target not in uuids or verdict.service:
        raise DeniedError(f"text can be pasted into VMs of this host that run, and the policy chose {verdict.target}")
    return verdict
