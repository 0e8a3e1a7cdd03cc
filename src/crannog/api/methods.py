"""All methods: importing this declares them."""

from crannog.api import (
    absent_methods,
    event_methods,
    internal_methods,
    list_methods,
    power_methods,
    property_methods,
    setting_methods,
    vm_methods,
    volume_methods,
)
from crannog.api.table import METHODS, answer, begin

__all__ = [
    "METHODS",
    "absent_methods",
    "answer",
    "begin",
    "event_methods",
    "internal_methods",
    "list_methods",
    "power_methods",
    "property_methods",
    "setting_methods",
    "vm_methods",
    "volume_methods",
]
