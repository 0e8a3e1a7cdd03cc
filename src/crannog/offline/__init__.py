"""Offline mode (design.md, B7): the API answered in the tool's own process, with no daemon, libvirt or socket."""
