"""Every error that Crannog raises on purpose, and the exit code of each.

The tree::

    CrannogError                    1   something failed; the sentence says what
    |- UsageError                   2   the command line is wrong
    |- ValueRefusedError            2   a name or value is not acceptable
    |  |- PropertyRefusedError      2   a property cannot have that value
    |  |- TagRefusedError           2
    |  |- LabelRefusedError         2
    |  `- ColorRefusedError         2
    |- NotFoundError                3   no such VM, property, label, pool, ...
    |  |- VMNotFoundError           3
    |  |  `- UUIDRefusedError       3   what names it is no UUID
    |  |- PropertyNotFoundError     3
    |  |- FeatureNotFoundError      3
    |  |- TagNotFoundError          3
    |  |- LabelNotFoundError        3
    |  |- DeviceNotAssignedError    3
    |  |- RevisionNotFoundError     3
    |  `- TokenNotFoundError        3   a token for a copy, which is good once
    |- InUseError                   4   something else depends on it, or it exists already
    |  |- LabelInUseError           4
    |  |- PoolInUseError            4
    |  |- VMExistsError             4
    |  |- LabelExistsError          4
    |  `- DeviceAssignedError       4   the device is assigned already
    |- StateError                   5   the VM is in the wrong power state
    |  |- VMNotHaltedError          5
    |  |- VMNotRunningError         5
    |  |- VMNotPausedError          5
    |  `- VMNotSuspendedError       5
    |- StartError                   6   a VM could not be started; it is halted again
    |  |- AgentTimeoutError         7   its agent did not answer in time
    |  `- MemoryRefusedError        6   the host has not enough free memory for it
    |- ShutdownTimeoutError         8
    |- StorageError                 9   a volume, a pool or the store's file
    |- HypervisorError             10   libvirt or QEMU
    |- DaemonError                 11   crannogd cannot be reached, or runs already
    |- ProtocolError               12   a peer broke the wire format
    |- DeniedError                 13   the caller may not do that
    |- OfflineError                14   needs the hypervisor or the daemon
    |- NotYetError                 15   this version of Crannog cannot do that
    |- DisplayError                16   a VM cannot be shown
    `- RpcError                   125   the guest agent could not run the command (qrexec's own code)

Each message is one sentence that names the thing, the cause and, where there is one, the next step.
`wire_name` is the exception class that Admin API clients know (Admin API, section 3); `from_wire` is the way
back, so that a tool ends with the same code whether an error was raised in the daemon or in its own process.
"""


class CrannogError(Exception):
    """Base of all errors that are shown to the user as one sentence."""

    exit_code = 1
    wire_name = "QubesException"


class UsageError(CrannogError):
    """The command line does not make sense."""

    exit_code = 2


class ValueRefusedError(CrannogError):
    """A name, property value or argument is not acceptable."""

    exit_code = 2
    wire_name = "QubesValueError"


class PropertyRefusedError(ValueRefusedError):
    """A property cannot have that value."""

    wire_name = "QubesPropertyValueError"


class TagRefusedError(ValueRefusedError):
    """No tag can be called so."""

    wire_name = "QubesInvalidTagError"


class LabelRefusedError(ValueRefusedError):
    """No label can be called so."""

    wire_name = "QubesInvalidLabelError"


class ColorRefusedError(ValueRefusedError):
    """That is not a colour."""

    wire_name = "QubesInvalidLabelValueError"


class NotFoundError(CrannogError):
    """The thing that was named does not exist."""

    exit_code = 3


class VMNotFoundError(NotFoundError):
    """No VM has that name or UUID."""

    wire_name = "QubesVMNotFoundError"


class UUIDRefusedError(VMNotFoundError):
    """A VM was named by something that is no UUID."""

    wire_name = "QubesVMInvalidUUIDError"


class PropertyNotFoundError(NotFoundError):
    """VMs of that class do not have such a property."""

    wire_name = "QubesNoSuchPropertyError"


class FeatureNotFoundError(NotFoundError):
    """The VM has no such feature."""

    wire_name = "QubesFeatureNotFoundError"


class TagNotFoundError(NotFoundError):
    """The VM has no such tag."""

    wire_name = "QubesTagNotFoundError"


class LabelNotFoundError(NotFoundError):
    """There is no such label."""

    wire_name = "QubesLabelNotFoundError"


class DeviceNotAssignedError(NotFoundError):
    """The device is not assigned to the VM."""

    wire_name = "DeviceNotAssigned"


class RevisionNotFoundError(NotFoundError):
    """The volume has no such revision."""

    wire_name = "QubesVolumeRevisionNotFoundError"


class TokenNotFoundError(NotFoundError):
    """There is no such token for a copy; each is good once."""

    wire_name = "QubesVolumeCopyTokenNotFoundError"


class InUseError(CrannogError):
    """Something depends on the thing, or the name is taken."""

    exit_code = 4
    wire_name = "QubesVMInUseError"


class LabelInUseError(InUseError):
    """A VM has the label."""

    wire_name = "QubesLabelInUseError"


class VMExistsError(InUseError):
    """A VM has the name that another shall get."""

    wire_name = "QubesVMAlreadyExistsError"


class LabelExistsError(InUseError):
    """There is a label of that name."""

    wire_name = "QubesValueError"


class PoolInUseError(InUseError):
    """A pool still has volumes, or is a default."""

    wire_name = "QubesPoolInUseError"


class DeviceAssignedError(InUseError):
    """The device is assigned to the VM already."""

    wire_name = "DeviceAlreadyAssigned"


class StateError(CrannogError):
    """The VM is in the wrong power state for the request."""

    exit_code = 5
    wire_name = "QubesVMError"


class VMNotHaltedError(StateError):
    """The request needs a halted VM."""

    wire_name = "QubesVMNotHaltedError"


class VMNotRunningError(StateError):
    """The request needs a running VM."""

    wire_name = "QubesVMNotRunningError"


class VMNotPausedError(StateError):
    """The request needs a paused VM."""

    wire_name = "QubesVMNotPausedError"


class VMNotSuspendedError(StateError):
    """The request needs a suspended VM."""

    wire_name = "QubesVMNotSuspendedError"


class StartError(CrannogError):
    """A start failed; everything it did was undone."""

    exit_code = 6
    wire_name = "QubesVMError"


class AgentTimeoutError(StartError):
    """The guest agent did not answer in time."""

    exit_code = 7


class MemoryRefusedError(StartError):
    """The host has not enough free memory for the VM."""

    wire_name = "QubesMemoryError"


class ShutdownTimeoutError(CrannogError):
    """The VM was still running when the time for its shutdown was over."""

    exit_code = 8
    wire_name = "QubesVMShutdownTimeoutError"


class StorageError(CrannogError):
    """A volume, a pool, an image or the store's file cannot be used."""

    exit_code = 9
    wire_name = "StoragePoolException"


class HypervisorError(CrannogError):
    """Libvirt or QEMU refused or failed."""

    exit_code = 10


class DaemonError(CrannogError):
    """The daemon cannot be reached, does not start, or runs already."""

    exit_code = 11
    wire_name = "QubesDaemonCommunicationError"


class ProtocolError(CrannogError):
    """A peer does not keep to the wire format."""

    exit_code = 12
    wire_name = "ProtocolError"


class DeniedError(CrannogError):
    """The caller may not do that."""

    exit_code = 13
    wire_name = "PermissionDenied"


class OfflineError(CrannogError):
    """The operation needs the hypervisor or the daemon."""

    exit_code = 14


class NotYetError(CrannogError):
    """This version of Crannog cannot do that."""

    exit_code = 15
    wire_name = "QubesNotImplementedError"


class DisplayError(CrannogError):
    """A VM cannot be shown: no desktop, or no program that shows it."""

    exit_code = 16


class RpcError(CrannogError):
    """The guest's agent cannot be reached or broke off."""

    exit_code = 125


EXIT_CODES = {
    0: "done",
    1: "failed, for a reason without a code of its own",
    2: "the command line, a name or a value is wrong",
    3: "there is no such VM, property, feature, tag, label, device",
    4: "in use, or it exists already",
    5: "the VM is in the wrong power state",
    6: "the VM could not be started; it is halted",
    7: "its agent did not answer in time; it is halted",
    8: "it did not shut down in time; it runs",
    9: "storage: a volume, a pool, an image, the store",
    10: "the hypervisor",
    11: "the daemon: not reachable, or a second one",
    12: "a peer broke the wire format",
    13: "not permitted",
    14: "needs the hypervisor or the daemon",
    15: "this version of Crannog cannot do that",
    16: "a VM cannot be shown",
    125: "qvm-run: the agent could not run the command",
    130: "interrupted by the user",
    141: "the reader of the output has gone",
    200: "qvm-console: somebody else is at the console",
}
"""What each exit code of the tools means; docs/exit-codes.md and the manual pages are made of it."""


def _walk(kind: type[CrannogError]) -> list[type[CrannogError]]:
    return [kind] + [below for child in kind.__subclasses__() for below in _walk(child)]


def from_wire(type_name: str, message: str) -> CrannogError:
    """Return the error for what a server sent.

    `type_name` is `ClassName` of this module, or a name of the Admin API; an unknown one becomes a plain
    CrannogError, so that a newer server's errors are still shown.
    """
    kinds = _walk(CrannogError)
    for kind in kinds:
        if kind.__name__ == type_name:
            return kind(message)
    for kind in kinds[1:]:
        if kind.wire_name == type_name and kind.wire_name != CrannogError.wire_name:
            return kind(message)
    return CrannogError(message)
