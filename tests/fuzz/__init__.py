"""Fuzzing: targets that any bytes can be given to, a small corpus, and the runs of `make fuzz` (docs/testing.md)."""
