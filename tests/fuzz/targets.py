"""All targets by name. Each takes any bytes, and raises when something is wrong with what came of them."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzz.call_data import fuzz_call_data
from tests.fuzz.copies import fuzz_qfile
from tests.fuzz.guest_values import fuzz_announcement, fuzz_features, fuzz_guestdb
from tests.fuzz.multiplexer import fuzz_channel, fuzz_clients
from tests.fuzz.policy_text import fuzz_policy, fuzz_policy_request
from tests.fuzz.qemu_agent import fuzz_qga
from tests.fuzz.wire import fuzz_frames, fuzz_messages, fuzz_trigger

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "announcement": fuzz_announcement,
    "call-data": fuzz_call_data,
    "channel": fuzz_channel,
    "clients": fuzz_clients,
    "features": fuzz_features,
    "frames": fuzz_frames,
    "guestdb": fuzz_guestdb,
    "messages": fuzz_messages,
    "policy": fuzz_policy,
    "policy-request": fuzz_policy_request,
    "qfile": fuzz_qfile,
    "qga": fuzz_qga,
    "trigger": fuzz_trigger,
}
CORPUS = Path(__file__).parent / "corpus"
SEED_MAX = 4096
"""Longest input of a run, and of a seed: what is longer than that comes of choices (tests/fuzz/guest_bytes.py)."""


def list_seeds(name: str) -> list[Path]:
    """Return the files of a target's corpus."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
