"""Showing VMs to the user (ports.display)."""
