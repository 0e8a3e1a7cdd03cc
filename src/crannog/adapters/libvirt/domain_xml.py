"""A DomainSpec as libvirt's domain XML: built by the machine of this host's hypervisor, changed as a user wants."""

import logging

from lxml import etree

from crannog.adapters.libvirt.xml import mock, qemu, xen
from crannog.adapters.libvirt.xml.machine import find_machine
from crannog.adapters.libvirt.xml.override_file import read_override
from crannog.adapters.libvirt.xml.overrides import merge_override
from crannog.core.domain import DomainSpec, HostCapabilities
from crannog.errors import HypervisorError

log = logging.getLogger(__name__)

MACHINES = (mock, qemu, xen)
"""The modules whose machines are registered by being imported here."""


def build_domain_xml(spec: DomainSpec, capabilities: HostCapabilities, overrides: str = "") -> str:
    """Return the XML of the domain `spec` on this host, with what the folder `overrides` says for it.

    Raises HypervisorError when the spec cannot be said in XML, when it needs more devices than the machine has, or
    when the file in `overrides` is refused. Reads that file: blocks for as long as this takes.
    """
    try:
        domain = find_machine(spec, capabilities).describe()
    except ValueError as error:
        raise HypervisorError(f"{spec.name!r} cannot be described to libvirt: {error}") from error
    _override(domain, spec, overrides)
    for warning in spec.warnings:
        log.warning("%s: %s", spec.name, warning)
    return etree.tostring(domain, encoding="unicode", pretty_print=True)


def _override(domain: etree._Element, spec: DomainSpec, folder: str) -> None:
    path = f"{folder}/{spec.name}.xml"
    override = read_override(path) if folder else None
    if override is not None:
        merge_override(domain, override, path)
        log.info("%s is started with %s", spec.name, path)
