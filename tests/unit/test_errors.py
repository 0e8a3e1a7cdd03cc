"""The exception tree: codes, names on the wire, and the way back."""

import pytest

from crannog import errors
from crannog.errors import CrannogError, from_wire

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CrannogError)]
# Names of classes in the Admin API's client (Admin API, section 3) that are not errors of Crannog's own.
CLIENT_NAMES = {
    "QubesException",
    "QubesVMNotFoundError",
    "QubesVMError",
    "QubesVMInUseError",
    "QubesVMNotRunningError",
    "QubesVMNotHaltedError",
    "QubesVMShutdownTimeoutError",
    "QubesValueError",
    "QubesNoSuchPropertyError",
    "QubesFeatureNotFoundError",
    "ProtocolError",
    "PermissionDenied",
    "StoragePoolException",
    "QubesDaemonCommunicationError",
    "QubesPropertyValueError",
    "QubesTagNotFoundError",
    "QubesLabelNotFoundError",
    "QubesVMInvalidUUIDError",
    "QubesVMNotPausedError",
    "QubesVMNotSuspendedError",
    "QubesPoolInUseError",
    "QubesNotImplementedError",
    "DeviceNotAssigned",
    "DeviceAlreadyAssigned",
}
# Names that only servers know: clients show such an error as a QubesException.
SERVER_NAMES = {
    "QubesMemoryError",
    "QubesLabelInUseError",
    "QubesVMAlreadyExistsError",
    "QubesInvalidTagError",
    "QubesInvalidLabelError",
    "QubesInvalidLabelValueError",
    "QubesVolumeRevisionNotFoundError",
    "QubesVolumeCopyTokenNotFoundError",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_back_from_the_wire_as_itself(kind: type[CrannogError]) -> None:
    error = from_wire(kind.__name__, "a 100% sentence")
    assert type(error) is kind
    assert str(error) == "a 100% sentence"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_name_that_clients_know(kind: type[CrannogError]) -> None:
    assert kind.wire_name in CLIENT_NAMES | SERVER_NAMES


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_the_drawn_tree_with_its_code(kind: type[CrannogError]) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if f"{kind.__name__} " in line)
    assert str(kind.exit_code) in line.split()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("QubesVMNotFoundError", errors.VMNotFoundError),
        ("QubesVMNotHaltedError", errors.VMNotHaltedError),
        ("QubesVMNotRunningError", errors.VMNotRunningError),
        ("QubesVMShutdownTimeoutError", errors.ShutdownTimeoutError),
        ("PermissionDenied", errors.DeniedError),
        ("QubesValueError", errors.ValueRefusedError),
        ("QubesInvalidTagError", errors.TagRefusedError),
        ("QubesInvalidLabelError", errors.LabelRefusedError),
        ("QubesInvalidLabelValueError", errors.ColorRefusedError),
        ("QubesVolumeRevisionNotFoundError", errors.RevisionNotFoundError),
        ("QubesVolumeCopyTokenNotFoundError", errors.TokenNotFoundError),
        ("QubesException", CrannogError),
        ("SomethingNewer", CrannogError),
        ("", CrannogError),
        ("KeyError", CrannogError),
    ],
)
def test_names_of_other_servers(name: str, kind: type[CrannogError]) -> None:
    assert type(from_wire(name, "why")) is kind


def test_codes_of_success_and_of_signals_are_not_used() -> None:
    assert all(0 < kind.exit_code < 126 for kind in KINDS)
