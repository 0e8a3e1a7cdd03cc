"""All methods: importing this declares them."""

from crannog.api import (
    absent_methods,
    device_methods,
    event_methods,
    firewall_methods,
    import_methods,
    internal_methods,
    list_methods,
    policy_methods,
    pool_methods,
    power_methods,
    property_methods,
    setting_methods,
    storage_methods,
    vm_methods,
    volume_methods,
)
from crannog.api.table import METHODS, answer, begin

__all__ = [
    "METHODS",
    "absent_methods",
    "answer",
    "begin",
    "device_methods",
    "event_methods",
    "firewall_methods",
    "import_methods",
    "internal_methods",
    "list_methods",
    "policy_methods",
    "pool_methods",
    "power_methods",
    "property_methods",
    "setting_methods",
    "storage_methods",
    "vm_methods",
    "volume_methods",
]
