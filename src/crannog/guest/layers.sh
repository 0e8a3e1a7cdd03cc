# shellcheck shell=sh
# The second layer of a VM's root, its swap, and the modules of its kernel. Read by every initramfs that knows Crannog
# (our own, initramfs-tools', dracut's), with /dev, /proc and /sys mounted. The host says on the kernel's command line
# which disks are meant:
#
#     crannog.volatile=/dev/vdc   empty at each start: for what the VM writes to a read-only root, and for swap
#     crannog.modules=/dev/vdd    the tree /lib/modules/RELEASE of the kernel, read-only
#
# Nothing that the volatile disk holds is ever read: after a reset of the VM it is what the session before has left.

CRANNOG_ROOT=/dev/mapper/crannog-root
crannog_memory=/crannog-memory
crannog_least=131072          # sectors, 64 MiB: less is full before the VM has started
crannog_swap_most=2097152     # sectors, 1 GiB
crannog_chunk=8               # sectors, a block of ext4: whole blocks are written without reading what is below them
crannog_newline='
'

crannog_say() {
	echo "crannog: $*" >/dev/console
}

# Set crannog_volatile and crannog_modules, empty where the host has given no such disk.
crannog_read_words() {
	crannog_volatile='' crannog_modules=''
	read -r crannog_line </proc/cmdline
	for crannog_word in $crannog_line; do
		case $crannog_word in
		crannog.volatile=/dev/*) crannog_volatile=${crannog_word#*=} ;;
		crannog.modules=/dev/*) crannog_modules=${crannog_word#*=} ;;
		esac
	done
}

# crannog_ask DEVICE FACT: set crannog_fact to what the kernel says of a block device, 0 when it says nothing.
crannog_ask() {
	crannog_fact=0
	[ ! -r "/sys/class/block/${1##*/}/$2" ] || read -r crannog_fact <"/sys/class/block/${1##*/}/$2"
}

# crannog_is_readonly DEVICE
crannog_is_readonly() {
	crannog_ask "$1" ro
	[ "$crannog_fact" = 1 ]
}

# Set crannog_swap and crannog_store to the sectors of the volatile disk that are for swap and for root's layer.
# Fails with the reason in crannog_why.
crannog_divide() {
	if [ ! -b "$crannog_volatile" ]; then
		crannog_why="there is no volatile disk ${crannog_volatile:-on the kernel command line}"
		return 1
	fi
	if crannog_is_readonly "$crannog_volatile"; then
		crannog_why="the volatile disk $crannog_volatile is read-only"
		return 1
	fi
	crannog_ask "$crannog_volatile" size
	if [ "$crannog_fact" -lt $crannog_least ]; then
		crannog_why="the volatile disk $crannog_volatile has $((crannog_fact / 2048)) MiB and needs $((crannog_least / 2048))"
		return 1
	fi
	crannog_swap=$((crannog_fact / 4 / crannog_chunk * crannog_chunk))
	[ $crannog_swap -le $crannog_swap_most ] || crannog_swap=$crannog_swap_most
	crannog_store=$((crannog_fact - crannog_swap))
}

# crannog_layer ROOT: make $CRANNOG_ROOT of the read-only disk ROOT and a layer over it on the volatile disk, and have
# swap. Fails with the reason in crannog_why. The volatile disk is not partitioned but mapped: nothing has to be written
# to it, and read back from it, before it can be used. Numbers that no other device has let one program make all three.
crannog_layer() {
	crannog_divide || return 1
	crannog_ask "$1" size
	modprobe dm-snapshot 2>/dev/null # some kernels have it built in
	crannog_maps="crannog-store,,200,rw,0 $crannog_store linear $crannog_volatile $crannog_swap"
	crannog_maps="$crannog_maps;crannog-swap,,201,rw,0 $crannog_swap linear $crannog_volatile 0"
	crannog_maps="$crannog_maps;crannog-root,,202,rw,0 $crannog_fact snapshot $1 /dev/dm-200 N $crannog_chunk"
	# The nodes are there at once, whether or not udev runs and knows such devices.
	if crannog_why=$(dmsetup create --verifyudev --noudevsync --concise "$crannog_maps" 2>&1); then
		crannog_swap_on /dev/mapper/crannog-swap
		return 0
	fi
	crannog_why="the volatile disk cannot be used (${crannog_why%%"$crannog_newline"*})"
	for crannog_name in crannog-root crannog-swap crannog-store; do
		dmsetup remove --verifyudev --noudevsync $crannog_name >/dev/null 2>&1
	done
	return 1
}

# crannog_swap_on DEVICE [KIB]
crannog_swap_on() {
	# shellcheck disable=SC2086
	mkswap "$1" $2 >/dev/null 2>&1 && swapon "$1" 2>/dev/null && return
	crannog_say "this VM has no swap: $1 cannot be used for it"
}

# Have swap on the volatile disk of a VM whose root is written on the host. What is behind it stays unused.
crannog_swap_only() {
	[ -z "$crannog_volatile" ] || if crannog_divide; then
		crannog_swap_on "$crannog_volatile" $((crannog_swap / 2))
	else
		crannog_say "this VM has no swap: $crannog_why"
	fi
}

# crannog_cover TREE: put memory over the root that is mounted, read-only, at TREE, because of crannog_why.
crannog_cover() {
	modprobe overlay 2>/dev/null
	crannog_upper=$crannog_memory/upper crannog_work=$crannog_memory/work
	if mkdir -p $crannog_memory && mount -t tmpfs -o mode=755 memory $crannog_memory &&
		mkdir $crannog_upper $crannog_work &&
		mount -t overlay -o "lowerdir=$1,upperdir=$crannog_upper,workdir=$crannog_work" root "$1"; then
		crannog_say "$crannog_why: what this VM writes to its root is kept in memory"
	else
		crannog_say "$crannog_why, and there is no overlay: root is read-only"
	fi 2>/dev/null
}

# crannog_mount_modules TREE: show the kernel's modules in the root at TREE, if it has none of this release itself.
crannog_mount_modules() {
	[ -b "$crannog_modules" ] || return 0
	read -r crannog_release </proc/sys/kernel/osrelease
	crannog_folder=$1/usr/lib/modules/$crannog_release
	[ -d "$1/lib" ] && [ ! -L "$1/lib" ] && crannog_folder=$1/lib/modules/$crannog_release
	[ ! -e "$crannog_folder/modules.dep" ] || return 0
	mkdir -p "$crannog_folder" 2>/dev/null &&
		mount -t ext4 -o ro "$crannog_modules" "$crannog_folder" 2>/dev/null && return
	crannog_say "the kernel's modules on $crannog_modules cannot be mounted at /lib/modules/$crannog_release"
}
