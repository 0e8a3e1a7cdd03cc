"""Virtual machines for security by compartmentalisation (see docs/design.md)."""

__version__ = "0.1.0"
