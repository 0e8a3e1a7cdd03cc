"""The model and the planners: pure code without I/O, clock, threads or libvirt."""
