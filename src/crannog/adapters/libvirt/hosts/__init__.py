"""What differs between libvirt's drivers: one module a driver. Those that are imported here are registered."""

from crannog.adapters.libvirt.hosts import mock, qemu, xen

__all__ = ["mock", "qemu", "xen"]
