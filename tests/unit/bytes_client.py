"""What a stock client makes of replies, as it does it (Admin API, sections 3, 5, 6, 7 and 9); it takes nothing else."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

Pairs = dict[str, str]

# Names of classes that the client has, with the built-in ones that its callers catch them by.
CLASSES: dict[str, tuple[type[Exception], ...]] = {
    "BackupAlreadyRunningError": (),
    "BackupCancelledError": (),
    "DeviceAlreadyAssigned": (KeyError,),
    "DeviceAlreadyAttached": (KeyError,),
    "DeviceNotAssigned": (KeyError,),
    "PermissionDenied": (),
    "ProtocolError": (AssertionError,),
    "QubesException": (),
    "QubesFeatureNotFoundError": (KeyError,),
    "QubesLabelNotFoundError": (KeyError,),
    "QubesMemoryError": (MemoryError,),
    "QubesNoSuchPropertyError": (AttributeError,),
    "QubesNoTemplateError": (),
    "QubesNotImplementedError": (),
    "QubesPoolInUseError": (),
    "QubesPropertyValueError": (ValueError,),
    "QubesTagNotFoundError": (KeyError,),
    "QubesVMAlreadyStartedError": (),
    "QubesVMError": (),
    "QubesVMInUseError": (),
    "QubesVMInvalidUUIDError": (),
    "QubesVMNotFoundError": (KeyError,),
    "QubesVMNotHaltedError": (),
    "QubesVMNotPausedError": (),
    "QubesVMNotRunningError": (),
    "QubesVMNotStartedError": (),
    "QubesVMNotSuspendedError": (),
    "QubesVMShutdownTimeoutError": (),
    "QubesValueError": (ValueError,),
    "StoragePoolException": (),
    "UnexpectedDeviceProperty": (ValueError,),
    "UnrecognizedDevice": (ValueError,),
}
# Names that it has no class for, and takes for a plain QubesException.
SERVER_ONLY = {
    "QubesInvalidLabelError",
    "QubesInvalidLabelValueError",
    "QubesInvalidTagError",
    "QubesLabelInUseError",
    "QubesVMAlreadyExistsError",
    "QubesVolumeCopyTokenNotFoundError",
    "QubesVolumeRevisionNotFoundError",
}

_PROPERTY = re.compile(r"default=(True|False) type=(str|int|bool|vm|label) (.*)", re.DOTALL)
_DEFAULT = re.compile(r"type=(str|int|bool|vm|label) (.*)", re.DOTALL)
_LISTED = re.compile(r"([a-zA-Z][a-zA-Z0-9_.-]{0,30}) class=([A-Za-z]+) state=([A-Za-z]+) uuid=([0-9a-f-]{36})")
_STATES = {"Halted", "Transient", "Running", "Paused", "Suspended", "Halting", "Dying", "Crashed", "NA"}
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)='((?:[^'\\]|\\.)*)'(?: |$)")
_ESCAPE = re.compile(r"\\(.)")


class ClientError(Exception):
    """What the client raises; `kind` is the class that it looked up."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_caught_as = CLASSES.get(kind, ())


class NoAnswerError(ClientError):
    """Nothing came: to the client that is a denial."""


def take(response: bytes) -> bytes:
    """Return the data of a response that succeeded; raises ClientError."""
    if response == b"":
        raise NoAnswerError("QubesDaemonAccessError", "Got empty response from qubesd")
    if response[:2] == b"0\0":
        return response[2:]
    assert response[:2] == b"2\0", response[:20]
    _, kind, _traceback, message, rest = response.split(b"\0", 4)
    fields = [field.decode() for field in rest.split(b"\0")[:-1]]
    arguments = tuple(int(field) if field.isdigit() else field for field in fields)
    raise ClientError(kind.decode("ascii"), message.decode() % arguments)


@dataclass(frozen=True)
class Value:
    """A property's value. `value` is None where the client says that there is none, or that it is no VM."""

    is_default: bool
    kind: str
    value: object


def _convert(kind: str, text: str) -> object:
    if kind == "bool":
        assert text in ("", "True", "False")
        return text == "True" if text else None
    if kind == "int":
        return int(text) if text else None
    return text if kind == "str" else text or None


def read_property(data: bytes) -> Value:
    found = _PROPERTY.fullmatch(data.decode("ascii"))
    assert found, data
    return Value(found[1] == "True", found[2], _convert(found[2], found[3]))


def read_default(data: bytes) -> object:
    found = _DEFAULT.fullmatch(data.decode("ascii"))
    assert found or data == b"", data
    return _convert(found[1], found[2]) if found else None


def read_all_properties(data: bytes) -> dict[str, Value]:
    values = {}
    for line in _lines(data):
        name, _, text = line.partition(" ")
        unescaped = _ESCAPE.sub(lambda found: {"n": "\n", "\\": "\\"}[found[1]], text)
        values[name] = read_property(unescaped.encode())
    return values


def _lines(data: bytes) -> list[str]:
    """Return the lines of a list, each of which has its end."""
    text = data.decode("ascii")
    assert text == "" or text.endswith("\n"), data
    lines = text.splitlines()
    assert lines == text.split("\n")[:-1], data
    assert all(lines), data
    return lines


def read_vms(data: bytes) -> dict[str, tuple[str, str, str]]:
    """Return class, state and UUID by name."""
    vms = {}
    for line in _lines(data):
        found = _LISTED.fullmatch(line)
        assert found, line
        assert found[3] in _STATES, line
        vms[found[1]] = (found[2], found[3], found[4])
    assert "dom0" not in vms or next(iter(vms)) == "dom0"
    return vms


def read_pairs(data: bytes) -> Pairs:
    pairs = [line.split("=", 1) for line in _lines(data)]
    assert len(dict(pairs)) == len(pairs), data
    return dict(pairs)


def read_volume(data: bytes) -> Pairs:
    volume = read_pairs(data)
    assert list(volume)[:11] == [
        "pool", "vid", "size", "usage", "rw", "source", "path", "save_on_stop", "snap_on_start", "revisions_to_keep",
        "ephemeral",
    ]  # fmt: skip
    assert all(int(volume[key]) >= 0 for key in ("size", "usage", "revisions_to_keep"))
    assert {volume[key] for key in ("rw", "save_on_stop", "snap_on_start", "ephemeral")} <= {"True", "False"}
    assert volume.get("is_outdated", "True") in ("True", "False")
    return volume


def read_state(data: bytes) -> Pairs:
    state = dict(word.split("=") for word in data.decode("ascii").split(" "))
    assert list(state) == ["mem", "mem_static_max", "cputime", "power_state"]
    assert all(state[key].isdigit() for key in list(state)[:3])
    assert state["power_state"] in _STATES
    return state


def read_devices(data: bytes) -> list[tuple[str, Pairs]]:
    """Return what each line begins with, and its pairs."""
    lines = _lines(data)
    assert lines == sorted(lines)
    return [(line.partition(" ")[0], _unpack(line.partition(" ")[2])) for line in lines]


def _unpack(text: str) -> Pairs:
    pairs = {}
    end = 0
    while end < len(text):
        found = _PAIR.match(text, end)
        assert found, text
        pairs[found[1]] = found[2].replace("\\'", "'")
        end = found.end()
    assert {"device_id", "port_id", "devclass", "backend_domain"} <= set(pairs)
    return pairs


def read_rules(data: bytes) -> list[Pairs]:
    """Return the firewall rules; a comment is the rest of its line."""
    rules = []
    for line in _lines(data):
        words, _, comment = line.partition(" comment=")
        rules.append(dict(word.split("=", 1) for word in words.split(" ")) | ({"comment": comment} if comment else {}))
    assert all(rule["action"] in ("accept", "drop") for rule in rules)
    return rules


def read_color(data: bytes) -> int:
    assert re.fullmatch(rb"0x[0-9a-f]{6}", data), data
    return int(data, 16)


def read_codes(data: bytes) -> list[str]:
    codes = data.decode("ascii").split("\n") if data else []
    assert all(len(code) == 7 for code in codes), data
    return codes


def read_token(data: bytes) -> bytes:
    assert len(data) == 32
    return data


def read_truth(data: bytes) -> bool:
    assert data in (b"0", b"1"), data
    return data == b"1"


def read_disposable(data: bytes) -> str:
    name = data.decode("ascii")
    assert re.fullmatch(r"uuid:[0-9a-f-]{36}|disp[1-9][0-9]{0,3}", name), name
    return name


def read_place(data: bytes) -> tuple[int, str]:
    size, _, path = data.decode().partition(" ")
    assert path.startswith("/")
    return int(size), path


def read_drivers(data: bytes) -> dict[str, list[str]]:
    return {line.split(" ")[0]: line.split(" ")[1:] for line in _lines(data)}


def read_policy(data: bytes) -> tuple[str, str]:
    """Return the token of a policy file, and its content."""
    token, separator, content = data.decode().partition("\n")
    assert separator
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", token), token
    return token, content


def read_nothing(data: bytes) -> None:
    assert data == b""


def read_events(data: bytes) -> list[tuple[str, str, Pairs]]:
    """Return subject, event and arguments of whole events."""
    words = iter(data.decode("ascii").split("\0"))
    events = []
    for header in words:
        if header == "":
            break
        assert header == "1", data
        subject, name = next(words), next(words)
        arguments = {}
        while key := next(words):
            assert key not in ("subject", "event", "subject_name"), data
            arguments[key] = next(words)
        assert "name" in arguments or not name.startswith("property-"), data
        events.append((subject, name, arguments))
    return events


Reader = Callable[[bytes], object]
_READERS: tuple[tuple[str, Reader], ...] = (
    (r"admin\.vm\.List", read_vms),
    (r"admin\.(vm\.)?property\.Get", read_property),
    (r"admin\.(vm\.)?property\.GetAll", read_all_properties),
    (r"admin\.(vm\.)?property\.GetDefault", read_default),
    (r"admin\.vm\.feature\.(Get|CheckWith[A-Za-z]+)", bytes.decode),
    (r"admin\.vm\.tag\.Get", read_truth),
    (r"admin\.label\.Get", read_color),
    (r"admin\.label\.Index", int),
    (r"admin\.vm\.CurrentState", read_state),
    (r"admin\.vm\.CreateDisposable", read_disposable),
    (r"admin\.pool\.(Info|UsageDetails)", read_pairs),
    (r"admin\.pool\.ListDrivers", read_drivers),
    (r"admin\.vm\.volume\.Info", read_volume),
    (r"admin\.vm\.volume\.CloneFrom", read_token),
    (r"admin\.vm\.volume\.ListSnapshots", _lines),
    (r"admin\.vm\.device\.denied\.List", read_codes),
    (r"admin\.vm\.device\.[a-z]+\.(Available|Assigned|Attached)", read_devices),
    (r"admin\.vm\.firewall\.Get", read_rules),
    (r"internal\.GetSystemInfo", json.loads),
    (r"policy\.((include\.)?List|GetFiles)", _lines),
    (r"policy\.(include\.)?Get", read_policy),
    (r"internal\.vm\.volume\.ImportBegin", read_place),
    (r"(crannog\.[A-Za-z.]+|admin\.(vm\.)?property\.Help|admin\.vm\.(Console|notes\.Get))", bytes.decode),
    (r"(admin\.[A-Za-z.]+\.List)", _lines),
    (r"(admin|internal|policy|qubes)\.[A-Za-z._]+", read_nothing),
)


def read(method: str, response: bytes) -> object:
    """Return what the client makes of a method's response; raises ClientError."""
    reader = next(reader for pattern, reader in _READERS if re.fullmatch(pattern, method))
    return reader(take(response))
