#!/bin/sh
# Puts a layer over a read-only root, and mounts it: who finds a root at its place mounts no other one.
. /lib/crannog/layers.sh

crannog_read_words
crannog_disk=$(readlink -f "${root#block:}")
if ! crannog_is_readonly "$crannog_disk"; then
	crannog_swap_only
elif ! crannog_layer "$crannog_disk" || ! mount -o "rw${rflags:+,$rflags}" "$CRANNOG_ROOT" "$NEWROOT"; then
	crannog_why=${crannog_why:-"the layer over $crannog_disk cannot be mounted"}
	mount -o "ro,noload${rflags:+,$rflags}" "$crannog_disk" "$NEWROOT" && crannog_cover "$NEWROOT"
fi
