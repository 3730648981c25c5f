#!/bin/busybox sh
# What the tests' guest does from its disk: runs /etc/start in the background, its output on the first serial port, and the commands that come by
# the second one, each with a number. See tests/src/guest.rs.
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -o remount,rw /
if [ -x /agent/qemu-ga ] && [ -c /dev/vport0p1 ]; then
    mount -t tmpfs run /run
    LD_LIBRARY_PATH=/agent /agent/ld-linux-x86-64.so.2 /agent/qemu-ga -m virtio-serial -p /dev/vport0p1 -t /run >/run/agent.log 2>&1 &
fi
stty -F /dev/ttyS0 -onlcr
stty -F /dev/ttyS1 raw -echo
echo LANDFALL-GUEST-READY >/dev/ttyS0
[ -f /etc/start ] && sh /etc/start >/dev/ttyS0 2>&1 &
exec <>/dev/ttyS1 >&0 2>&0
while read -r number line; do
    printf '<%s\n' "$number"
    (eval "$line") </dev/null 2>&1
    printf '\n>%s %s\n' "$number" "$?"
done
