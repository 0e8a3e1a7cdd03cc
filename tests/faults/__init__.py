"""Series of faults against the whole: QEMU, libvirtd and crannogd are killed while VMs start, run and end.

`tests/vm/test_reliability.py` runs a few of each, `scripts/faults` all of them and writes docs/reliability.md.
"""
