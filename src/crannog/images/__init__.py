"""Builders of guest images, from the distribution's own packages."""
