"""Machines for tests that the host's kernel cannot run: built from packages, booted, used once, thrown away."""
