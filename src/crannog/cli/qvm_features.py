"""qvm-features and qvm-service: show and change the features of a VM, and the services among them."""

from __future__ import annotations

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.request import refuse_odd_name, refuse_odd_value
from crannog.cli.tool import end, run, say
from crannog.errors import FeatureNotFoundError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

FEATURES = Command(
    "qvm-features",
    "Show the features of a VM, or show or change one.",
    Operand("vm", "VM", "the VM"),
    Operand("name", "FEATURE", "the feature; all are listed without it", "?"),
    Operand("value", "VALUE", "its new value, as it is; '' means false", "?"),
    Option("--default", "--unset", "--delete", "-D", help="remove the feature"),
    Option("--with-template", help="a feature that the VM does not have is looked up in its template"),
    Option("--with-netvm", help="the same in its netvm"),
    Option("--with-admin", help="the same in dom0; --with-template may be given too and comes first"),
    *COMMON,
    OFFLINE,
    examples=(
        "  qvm-features work\n  qvm-features work gui 1\n  qvm-features work gui ''\n"
        "  qvm-features --with-template work qrexec\n  qvm-features --unset work gui\n"
        "  qvm-features work note -- '- a value that starts with a dash'"
    ),
)
SERVICE = Command(
    "qvm-service",
    "Show the services of a VM that are switched on or off, or show or switch one. The VM decides about all others.",
    Operand("vm", "VM", "the VM"),
    Operand("name", "SERVICE", "the service; all that are set are listed without it", "?"),
    Operand("value", "on|off", "switch it", "?"),
    Option("--list", "-l", help="list, as without a service"),
    Option("--enable", "-e", help="switch the service on"),
    Option("--disable", "-d", help="switch the service off"),
    Option("--default", "--unset", "--delete", "-D", help="leave the service to the VM again"),
    *COMMON,
    OFFLINE,
    examples="  qvm-service work\n  qvm-service work cups on\n  qvm-service -d work cups\n  qvm-service -D work cups",
)
_PREFIX = "service."
_LOOK_UPS = {
    (): "Get",
    ("template",): "CheckWithTemplate",
    ("netvm",): "CheckWithNetvm",
    ("admin",): "CheckWithAdminVM",
    ("template", "admin"): "CheckWithTemplateAndAdminVM",
}


class Features:
    """The features of one VM."""

    def __init__(self, client: Caller, vm: str) -> None:
        self._client = client
        self.vm = vm

    def _text(self, method: str, name: str = "", value: str = "") -> str:
        return self._client.text(f"admin.vm.feature.{method}", self.vm, name, value)

    def get(self, name: str, method: str = "Get") -> str:
        """Return a feature's value; raises FeatureNotFoundError."""
        return self._text(method, name)

    def all(self, prefix: str = "") -> dict[str, str]:
        """Return the values of the VM's own features whose names start with `prefix`, by name."""
        values = {}
        for name in self._text("List").splitlines():
            if name.startswith(prefix):
                try:
                    values[name] = self.get(name)
                except FeatureNotFoundError:
                    continue  # somebody has just removed it
        return values

    def set(self, name: str, value: str) -> None:
        """Give the VM a feature."""
        self._text("Set", name, value)

    def remove(self, name: str) -> None:
        """Remove a feature; raises FeatureNotFoundError."""
        self._text("Remove", name)


def _features(options: Values) -> None:
    method = _find_look_up(options)
    features, name = Features(open_client(FEATURES.program, options), options.vm), options.name
    if name is None:
        _print(features.all())
    elif options.default:
        features.remove(name)
    elif options.value is None:
        say(features.get(name, method))
    else:
        refuse_odd_value(f"feature '{name}'", options.value)
        features.set(name, options.value)


def _find_look_up(options: Values) -> str:
    """Return the method that shows a feature; raises UsageError for a command line that contradicts itself."""
    where = tuple(word for word in ("template", "netvm", "admin") if getattr(options, f"with_{word}"))
    if options.name is not None:
        refuse_odd_name("feature", options.name)
    if options.default and (options.name is None or options.value is not None):
        raise UsageError("--unset takes a VM and the name of a feature, and no value")
    if where and (options.name is None or options.value is not None or options.default):
        raise UsageError(f"--with-{where[0]} is for showing one feature: give its name, and no value")
    if where not in _LOOK_UPS:
        raise UsageError("--with-netvm excludes the other places to look in")
    return _LOOK_UPS[where]


def _print(values: dict[str, str]) -> None:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        say(f"{name:{width}}  {value}".rstrip())


def _service(options: Values) -> None:
    wish = _find_wish(options)
    features, name = Features(open_client(SERVICE.program, options), options.vm), options.name
    if name is None:
        values = features.all(_PREFIX)
        _print({name.removeprefix(_PREFIX): _on_off(value) for name, value in values.items()})
    elif wish == "show":
        say(_on_off(_get_service(features, name)))
    elif wish == "default":
        _forget_service(features, name)
    else:
        features.set(_PREFIX + name, "1" if wish == "on" else "")


def _find_wish(options: Values) -> str:
    """Return on, off, default or show; raises UsageError for a command line that contradicts itself."""
    if options.value not in (None, "on", "off"):
        raise UsageError(f"'{options.value}' is neither on nor off")
    flags = {"on": options.enable, "off": options.disable, "default": options.default, "show": options.list}
    wishes = [wish for wish, is_given in flags.items() if is_given]
    if options.value:
        wishes.append(options.value)
    if len(wishes) > 1:
        raise UsageError("say only one of --list, --enable, --disable, --default, on and off")
    if wishes and (options.name is None) != options.list:
        raise UsageError("--list takes no service" if options.list else "name the service after the VM")
    if options.name is not None:
        refuse_odd_name("service", options.name)
    return wishes[0] if wishes else "show"


def _on_off(value: str) -> str:
    return "on" if value else "off"


def _get_service(features: Features, name: str) -> str:
    try:
        return features.get(_PREFIX + name)
    except FeatureNotFoundError:
        raise FeatureNotFoundError(
            f"service '{name}' of {features.vm} is neither on nor off: the VM decides; switch it with "
            f"'qvm-service {features.vm} {name} on'"
        ) from None


def _forget_service(features: Features, name: str) -> None:
    """Leave a service to the VM, which it may be already."""
    try:
        features.remove(_PREFIX + name)
    except FeatureNotFoundError:
        return


def main() -> None:
    """Run qvm-features."""
    end(run(FEATURES, _features))


def main_service() -> None:
    """Run qvm-service."""
    end(run(SERVICE, _service))
