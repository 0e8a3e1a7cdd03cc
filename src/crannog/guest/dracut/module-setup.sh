#!/bin/bash
# A module of dracut (dracut.modules(7)): root's second layer, swap, and the modules of a kernel from the host.

check() {
	require_binaries dmsetup mkswap swapon || return 1
}

depends() {
	echo dm
}

installkernel() {
	hostonly='' instmods dm-snapshot overlay virtio_pci virtio_blk xen-blkfront ext4
}

install() {
	inst_multiple dmsetup mkswap swapon mkdir mount modprobe readlink
	inst_simple /usr/lib/crannog/layers.sh /lib/crannog/layers.sh
	inst_hook pre-mount 50 "$moddir/layer.sh"
	inst_hook pre-pivot 50 "$moddir/modules.sh"
}
