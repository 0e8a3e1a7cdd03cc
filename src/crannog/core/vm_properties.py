"""The properties of each class (Admin API, section 6, "Property sets"): what they are, their defaults and rules."""

from __future__ import annotations

from crannog.core import defaults, network, rules
from crannog.core.defaults import constant, from_global, inherited
from crannog.core.kinds import BOOL, INT, LABEL, STR, VM, parse_ip, parse_ip6, parse_mac, parse_user
from crannog.core.preload_wishes import is_preloaded
from crannog.core.properties import STAGE_REFERENCES, Property, check_range

MIN_MEMORY = 64
_MEMORY, _MAXMEM = check_range(MIN_MEMORY, defaults.MAX_MEMORY, "MiB"), check_range(0, defaults.MAX_MEMORY, "MiB")
_SECONDS = check_range(1, 86400, "seconds")

OF_ALL = (
    Property("name", STR, "Name of the VM.", check=rules.vm_name, needs_halted=True, is_cloned=False),
    Property("uuid", STR, "UUID of the VM, from its creation on.", is_readonly=True, is_cloned=False),
    Property("qid", INT, "Number of the VM, from its creation on.", is_readonly=True, is_cloned=False),
    Property("klass", STR, "Class of the VM.", default=lambda vm: vm.klass, is_readonly=True),
    Property("label", LABEL, "Colour of the VM's trust level.", default=lambda vm: vm.registry.default_label()),
    Property("icon", STR, "Name of the VM's icon.", default=defaults.icon, is_readonly=True),
    Property("include_in_backups", BOOL, "Back this VM up.", default=constant(value=True)),
)
"""Of every VM, the AdminVM and RemoteVMs included."""

_DEFAULT_DISPVM = Property(
    "default_dispvm", VM, "Template of the disposables that this VM asks for.",
    default=from_global("default_dispvm"), check=rules.disposable_template, stage=STAGE_REFERENCES,
)  # fmt: skip
_DENIED = Property(
    "devices_denied", STR, "Interfaces of devices that this VM never gets, as codes of seven characters.",
    default=constant(""), check=rules.devices_denied,
)  # fmt: skip

OF_ADMIN = (
    Property("maxmem", INT, "Always 0: dom0 is not managed.", default=constant(0), is_readonly=True),
    Property("vcpus", INT, "Always 0: dom0 is not managed.", default=constant(0), is_readonly=True),
    Property("updateable", BOOL, "Can be updated.", default=constant(value=True), is_readonly=True),
    Property("name", STR, "Name of the VM.", is_readonly=True),
    Property(
        "keyboard_layout", STR, "Keyboard layout, as LAYOUT+VARIANT+OPTIONS.",
        default=constant(defaults.KEYBOARD), check=rules.keyboard_layout,
    ),
    Property("label", LABEL, "Colour of the VM's trust level.", default=lambda vm: vm.registry.default_label("black")),
    _DENIED,
    _DEFAULT_DISPVM,
)  # fmt: skip

_MACHINE = (
    Property(
        "virt_mode", STR, "How the VM is virtualised: pv, pvh or hvm.",
        default=defaults.virt_mode, check=rules.virt_mode, needs_halted=True,
    ),
    Property(
        "kernel", STR, "Kernel from the host, by its name in pool linux-kernel; empty: the VM's own.",
        default=defaults.kernel, check=rules.kernel, needs_halted=True,
    ),
    Property(
        "kernelopts", STR, "What is added to the command line of a kernel from the host.",
        default=inherited("kernelopts", constant("")), stage=STAGE_REFERENCES,
    ),
    Property(
        "bootmode", STR, "Which of the boot modes that the VM's features name it starts in.",
        default=defaults.bootmode, stage=STAGE_REFERENCES,
    ),
    Property(
        "memory", INT, "Memory at start, in MiB.",
        default=inherited("memory", constant(defaults.MEMORY)), check=_MEMORY,
    ),
    Property(
        "maxmem", INT, "Most memory the VM may get, in MiB; 0 or `memory`: it gets no more than at its start.",
        default=defaults.maxmem, check=_MAXMEM,
    ),
    Property(
        "stubdom_mem", INT, "Memory of the VM's stub domain, in MiB.", default=constant(None), check=_MEMORY,
    ),
    Property(
        "vcpus", INT, "Number of virtual processors.",
        default=inherited("vcpus", constant(defaults.VCPUS)), check=check_range(1, 255, "processors"),
    ),
    Property("debug", BOOL, "Debug mode.", default=constant(value=False)),
    Property("autostart", BOOL, "Start the VM with the host.", default=constant(value=False)),
    Property(
        "installed_by_rpm", BOOL, "The system's package manager installed the VM.",
        default=constant(value=False), is_cloned=False,
    ),
    Property(
        "updateable", BOOL, "Can be updated by itself (its root is its own).",
        default=lambda vm: not vm.is_template_based, is_readonly=True,
    ),
    Property(
        "backup_timestamp", INT, "When the VM was last backed up, in seconds since 1970.",
        default=constant(None), check=check_range(0, 2**53, "seconds"), is_cloned=False,
    ),
)  # fmt: skip

_RUNNING = (
    Property(
        "xid", INT, "Number of the running VM at its hypervisor; -1 when halted.",
        default=lambda vm: vm.registry.runtime.xid(vm.uuid), is_readonly=True,
    ),
    Property(
        "stubdom_xid", INT, "Number of the running VM's stub domain; -1 when there is none.",
        default=lambda vm: vm.registry.runtime.stubdom_xid(vm.uuid), is_readonly=True,
    ),
    Property("stubdom_uuid", STR, "UUID of the running VM's stub domain.", default=constant(""), is_readonly=True),
    Property("start_time", STR, "When the running VM was started.", default=constant(""), is_readonly=True),
)  # fmt: skip

_SESSION = (
    Property(
        "default_user", STR, "User that commands run as.",
        default=inherited("default_user", constant("user")), normalise=parse_user,
    ),
    Property(
        "qrexec_timeout", INT, "Seconds to wait for the agent at a start.",
        default=inherited("qrexec_timeout", from_global("default_qrexec_timeout")), check=_SECONDS,
    ),
    Property(
        "shutdown_timeout", INT, "Seconds to wait for a clean shutdown.",
        default=inherited("shutdown_timeout", from_global("default_shutdown_timeout")), check=_SECONDS,
    ),
    Property(
        "keyboard_layout", STR, "Keyboard layout, as LAYOUT+VARIANT+OPTIONS.",
        default=defaults.keyboard_layout, check=rules.keyboard_layout,
    ),
    Property(
        "guivm", VM, "VM that shows this VM's windows.",
        default=defaults.served_by("guivm"), check=rules.guivm, stage=STAGE_REFERENCES,
    ),
    Property(
        "audiovm", VM, "VM that plays this VM's sound.",
        default=defaults.served_by("audiovm"), check=rules.audiovm, stage=STAGE_REFERENCES,
    ),
    Property(
        "management_dispvm", VM, "Template of the disposables that manage this VM.",
        default=inherited("management_dispvm", from_global("management_dispvm")),
        check=rules.disposable_template, stage=STAGE_REFERENCES,
    ),
    _DEFAULT_DISPVM,
    _DENIED,
)  # fmt: skip

_NETWORK = (
    Property(
        "netvm",
        VM,
        "VM that this one gets its network from; empty: none.",
        default=defaults.netvm,
        check=rules.netvm,
        stage=STAGE_REFERENCES,
    ),
    Property(
        "provides_network",
        BOOL,
        "Other VMs may get their network from this one.",
        default=constant(value=False),
        check=rules.provides_network,
    ),
    Property("ip", STR, "IPv4 address.", default=network.default_ip, normalise=parse_ip, is_cloned=False),
    Property("ip6", STR, "IPv6 address.", default=network.default_ip6, normalise=parse_ip6, is_cloned=False),
    Property("mac", STR, "MAC address.", default=network.default_mac, normalise=parse_mac, is_cloned=False),
    Property("dns", STR, "Name servers, separated by a blank.", default=network.dns, is_readonly=True),
    Property("gateway", STR, "Address at which this VM serves others.", default=network.gateway, is_readonly=True),
    Property("gateway6", STR, "The same for IPv6.", default=network.gateway6, is_readonly=True),
    Property("visible_ip", STR, "IPv4 address that the VM sees.", default=network.visible_ip, is_readonly=True),
    Property("visible_ip6", STR, "IPv6 address that the VM sees.", default=network.visible_ip6, is_readonly=True),
    Property("visible_gateway", STR, "Gateway that the VM sees.", default=network.visible_gateway, is_readonly=True),
    Property("visible_gateway6", STR, "The same for IPv6.", default=network.visible_gateway6, is_readonly=True),
    Property("visible_netmask", STR, "Netmask that the VM sees.", default=network.visible_netmask, is_readonly=True),
)

OF_LOCAL = _MACHINE + _RUNNING + _SESSION + _NETWORK
"""Of every VM that runs on this host."""

OF_TEMPLATE = (
    Property("netvm", VM, "VM that this one gets its network from; empty: none.",
             default=constant(None), check=rules.netvm, stage=STAGE_REFERENCES),
    Property("appvm_default_bootmode", STR, "Boot mode of the AppVMs that start from this VM.",
             default=constant("default")),
)  # fmt: skip

TEMPLATE = Property(
    "template", VM, "VM whose root this one starts from.",
    check=rules.template, needs_halted=True, stage=STAGE_REFERENCES,
)  # fmt: skip

OF_APP = (
    TEMPLATE,
    Property(
        "template_for_dispvms", BOOL, "Disposables may start from this VM.",
        default=constant(value=False), check=rules.template_for_dispvms,
    ),
)  # fmt: skip

OF_DISPOSABLE = (
    TEMPLATE,
    Property("auto_cleanup", BOOL, "Remove the VM when it ends.", default=constant(value=False)),
    Property(
        "dispid", INT, "Number of the disposable, from its creation on.",
        check=check_range(0, 9999, "as numbers of disposables"), is_write_once=True, is_cloned=False,
    ),
    Property("is_preload", BOOL, "Started in advance and not claimed yet.", default=is_preloaded, is_readonly=True),
    Property(
        "default_dispvm", VM, "Template of the disposables that this VM asks for.",
        default=lambda vm: vm.template, check=rules.disposable_template, stage=STAGE_REFERENCES,
    ),
)  # fmt: skip

OF_REMOTE = (
    Property("remote_name", STR, "Name of the VM on the other host.", default=constant("")),
    Property("transport_rpc", STR, "Service that carries calls to the other host.", default=constant("")),
    Property("relayvm", VM, "VM that relays calls to the other host.",
             default=constant(None), stage=STAGE_REFERENCES),
)  # fmt: skip
