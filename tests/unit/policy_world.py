"""VMs, policy files in memory and on the disk, and a decision in one line."""

from collections.abc import Sequence
from pathlib import Path

from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.loader import load, load_text
from crannog.policy.policy import Policy
from crannog.policy.system import SystemInfo, VMInfo

ETC, RUN = "/etc/policy.d", "/run/policy.d"
DOM0 = VMInfo("dom0", "00000000-0000-0000-0000-000000000000", "AdminVM", frozenset({"x"}), "Running")


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012x}"


VMS = (
    DOM0,
    VMInfo("work", uuid(1), "AppVM", frozenset({"x", "office"}), "Running", default_dispvm="dvm"),
    VMInfo("vault", uuid(2), "AppVM", frozenset({"secret"}), "Halted"),
    VMInfo("dvm", uuid(3), "AppVM", frozenset({"x"}), "Halted", template_for_dispvms=True, default_dispvm="dvm"),
    VMInfo("dvm2", uuid(4), "AppVM", frozenset(), "Halted", template_for_dispvms=True),
    VMInfo("debian", uuid(5), "TemplateVM", frozenset(), "Halted", default_dispvm="vault"),
    VMInfo("relay", uuid(6), "AppVM", frozenset(), "Running"),
    VMInfo("far", uuid(7), "RemoteVM", frozenset({"remote"}), "NA", relayvm="relay", transport_rpc="ssh.Relay"),
    VMInfo("lost", uuid(8), "RemoteVM", frozenset(), "NA"),
)
SYSTEM = SystemInfo(VMS)


class Files:
    """A Reader of files in memory; a value that is an error is raised."""

    def __init__(self, files: dict[str, str | Exception]) -> None:
        self.files = files
        self.reads: list[str] = []

    def list_files(self, directory: str) -> Sequence[str] | None:
        found = [path.removeprefix(f"{directory}/") for path in self.files if path.startswith(f"{directory}/")]
        return [name for name in found if "/" not in name][::-1] if found else None

    def read_text(self, path: str) -> str | None:
        self.reads.append(path)
        found = self.files.get(path)
        if isinstance(found, Exception):
            raise found
        return found


class Disk:
    """A Reader of real files."""

    def list_files(self, directory: str) -> Sequence[str] | None:
        path = Path(directory)
        return [entry.name for entry in path.iterdir() if entry.is_file()] if path.is_dir() else None

    def read_text(self, path: str) -> str | None:
        return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None


def load_files(files: dict[str, str | Exception], *directories: str) -> Policy:
    """Return the policy of files whose paths are below ETC, unless they are absolute."""
    absolute = {path if path.startswith("/") else f"{ETC}/{path}": text for path, text in files.items()}
    return load(Files(absolute), directories or (RUN, ETC), "/old")


def problems(policy: Policy) -> list[str]:
    return [str(problem) for problem in policy.problems]


def decide(text: str, call: str, source: str, target: str, system: SystemInfo = SYSTEM) -> Decision:
    policy = load_text(text)
    assert policy.problems == ()
    service, _, argument = call.partition("+")
    return evaluate(policy, system, Request(service, f"+{argument}", source, target))


def outcome(decision: Decision) -> str:
    """Return a decision in a word: where an allowed call ends, what can be chosen, or deny."""
    if isinstance(decision, Allow):
        return decision.target
    if isinstance(decision, Ask):
        return "ask " + " ".join(decision.targets)
    assert isinstance(decision, Deny)
    return "deny"
