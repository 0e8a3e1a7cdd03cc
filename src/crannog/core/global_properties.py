"""The global properties (Admin API, section 6, "Property sets")."""

from __future__ import annotations

from crannog.core import rules
from crannog.core.defaults import constant
from crannog.core.kinds import BOOL, INT, STR, VM
from crannog.core.pools import DEFAULT_POOL, KERNEL_POOL
from crannog.core.properties import Property, check_range

TIMEOUT = 60
STATS_INTERVAL = 3
_SECONDS = check_range(1, 86400, "seconds")


def _pool(volume: str) -> Property:
    return Property(
        f"default_pool_{volume}", STR, f"Pool of new {volume} volumes.",
        default=lambda registry: registry.get("default_pool"), check=rules.default_pool,
    )  # fmt: skip


GLOBAL = (
    Property("check_updates_vm", BOOL, "VMs look for updates by themselves.", default=constant(value=True)),
    Property("clockvm", VM, "VM that other VMs get the time from.", default=constant(None)),
    Property(
        "default_audiovm", VM, "VM that plays the sound of others.",
        default=lambda registry: registry.dom0, check=rules.default_audiovm,
    ),
    Property(
        "default_guivm", VM, "VM that shows the windows of others.",
        default=lambda registry: registry.dom0, check=rules.default_guivm,
    ),
    Property(
        "default_dispvm", VM, "Template of disposables.", default=constant(None), check=rules.disposable_template,
    ),
    Property(
        "management_dispvm", VM, "Template of the disposables that manage VMs.",
        default=constant(None), check=rules.disposable_template,
    ),
    Property(
        "default_kernel", STR, "Kernel of VMs that get one from the host.", default=constant(""), check=rules.kernel,
    ),
    Property(
        "default_netvm", VM, "VM that others get their network from.", default=constant(None), check=rules.provider,
    ),
    Property(
        "default_pool", STR, "Pool of new volumes.", default=constant(DEFAULT_POOL), check=rules.default_pool,
    ),
    Property(
        "default_pool_kernel", STR, "Pool of kernels from the host.",
        default=constant(KERNEL_POOL), check=rules.default_pool,
    ),
    _pool("private"),
    _pool("root"),
    _pool("volatile"),
    Property("default_qrexec_timeout", INT, "Seconds to wait for an agent.", default=constant(TIMEOUT), check=_SECONDS),
    Property(
        "default_shutdown_timeout", INT, "Seconds to wait for a clean shutdown.",
        default=constant(TIMEOUT), check=_SECONDS,
    ),
    Property(
        "default_template", VM, "Template of new VMs.", default=constant(None), check=rules.default_template,
    ),
    Property(
        "maxmem", INT, "Memory of the host, in MiB.", default=lambda registry: registry.host.memory, is_readonly=True,
    ),
    Property(
        "no_cpus", INT, "Processors of the host.", default=lambda registry: registry.host.processors, is_readonly=True,
    ),
    Property(
        "stats_interval", INT, "Seconds between two statistics of a VM.",
        default=constant(STATS_INTERVAL), check=_SECONDS,
    ),
    Property("updatevm", VM, "VM through which dom0 gets its updates.", default=constant(None)),
)  # fmt: skip
