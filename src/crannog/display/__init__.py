"""Processes that show what a guest draws: they read a guest's bytes, so that they live in a sandbox."""
