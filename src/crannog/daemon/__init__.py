"""The daemon: wires model, adapters and API, and executes plans."""
