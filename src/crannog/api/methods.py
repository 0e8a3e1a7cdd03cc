"""All methods: importing this declares them."""

from crannog.api import property_methods, setting_methods, vm_methods, volume_methods
from crannog.api.table import METHODS, find_method

__all__ = ["METHODS", "find_method", "property_methods", "setting_methods", "vm_methods", "volume_methods"]
