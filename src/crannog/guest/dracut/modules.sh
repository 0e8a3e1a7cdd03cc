#!/bin/sh
# Root is mounted: shows the modules of the kernel in it.
. /lib/crannog/layers.sh

crannog_read_words
crannog_mount_modules "$NEWROOT"
