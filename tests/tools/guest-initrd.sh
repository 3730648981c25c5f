#!/bin/busybox sh
# First process of the tests' guest: loads what its disk needs, and goes on from there. See tests/src/guest.rs.
/bin/busybox --install -s /bin
mount -t proc proc /proc 2>/dev/null || { mkdir -p /proc /sys /dev /mnt && mount -t proc proc /proc; }
mount -t devtmpfs dev /dev
. /modules
tries=0
until [ -b /dev/vda ] || [ -b /dev/sda ] || [ "$tries" -gt 300 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
for disk in /dev/vda /dev/sda; do
    [ -b "$disk" ] && mount -t ext4 "$disk" /mnt && [ -x /mnt/sbin/init ] && break
done
umount /proc /dev
exec switch_root /mnt /sbin/init
echo "LANDFALL-GUEST-FAILED no disk with /sbin/init" >/dev/ttyS0
