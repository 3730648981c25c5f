#!/bin/sh
# Stands in for zfs, zpool and zstream, by the name that it is called by: keeps files as snapshots of loop devices, and prints what the real programs print, as others
# recorded it and as the source of OpenZFS has it. Options that the agent does not use are refused.
LAB='FOLDER'
name=${0##*/}
echo "$name $*" >>"$LAB/log"
[ "$LC_ALL" = C ] || { echo "LC_ALL is not C" >&2; exit 90; }
refuse() { echo "$*" >&2; exit 1; }
fault=$(cat "$LAB/fault/$name" 2>/dev/null)
[ "$fault" = fails ] && refuse "internal error: out of memory"

case "$name $1" in
"zpool list")
    [ "$*" = "list -H -p -o capacity,health tank" ] || refuse "unknown: $*"
    printf '%s\tONLINE\n' "$(cat "$LAB/capacity")"
    ;;
"zfs list")
    case "$*" in
    "list -H -p -t volume -o name,snapdev")
        for file in "$LAB"/origins/*; do printf 'tank/%s\t%s\n' "${file##*/}" "$(cat "$LAB/snapdev")"; done
        ;;
    "list -H -p -t snapshot -d 1 -o name tank/"*)
        for file in "$LAB/snaps/${10#tank/}@"*; do
            case $file in *.held | *'@*') continue ;; esac
            echo "tank/${file##*/}"
        done
        ;;
    *) refuse "unknown: $*" ;;
    esac
    ;;
"zfs snapshot")
    shift
    for full in "$@"; do
        snap=${full#tank/}
        [ -e "$LAB/snaps/$snap" ] && refuse "cannot create snapshot '$full': dataset already exists"
        read -r device major minor id <"$LAB/origins/${snap%@*}" || refuse "cannot open '${full%@*}': dataset does not exist"
        cat "$device" >"$LAB/snaps/$snap"
        # udev is later.
        (sleep 0.1; ln -sf "$LAB/snaps/$snap" "$LAB/zvol/tank/$snap") >/dev/null 2>&1 &
    done
    ;;
"zfs hold")
    [ "$2" = landfall ] && [ -e "$LAB/snaps/${3#tank/}" ] || refuse "cannot hold snapshot '$3': dataset does not exist"
    touch "$LAB/snaps/${3#tank/}.held"
    ;;
"zfs release")
    rm "$LAB/snaps/${3#tank/}.held" 2>/dev/null || refuse "cannot release hold from snapshot '$3': no such tag on this dataset"
    ;;
"zfs destroy")
    snap=${2#tank/}
    # Anything else of the host's is gone for ever.
    case $snap in *@landfall-*) ;; *) echo "$2" >>"$LAB/wrongly-removed" ;; esac
    [ -e "$LAB/snaps/$snap" ] || refuse "could not find any snapshots to destroy; check snapshot names."
    [ -e "$LAB/snaps/$snap.held" ] && refuse "cannot destroy snapshot $2: dataset is busy"
    rm -f "$LAB/snaps/$snap" "$LAB/zvol/tank/$snap"
    ;;
"zfs send")
    [ "$2 $3 $4" = "-L -c -i" ] || refuse "unknown: $*"
    old="$LAB/snaps/${5#tank/}" new="$LAB/snaps/${6#tank/}"
    [ -e "$old" ] && [ -e "$new" ] || refuse "cannot open '$5': dataset does not exist"
    # No stream that anything else would understand.
    echo "$6"
    cmp -l "$old" "$new" 2>/dev/null | awk '{ block = int(($1 - 1) / 16384); if (block != last || NR == 1) print block * 16384; last = block }'
    ;;
"zstream dump")
    [ "$*" = "dump -v" ] || refuse "unknown: $*"
    read -r of
    answer() {
        printf 'BEGIN record\n\thdrtype = 1\n\tfeatures = 420004\n\tmagic = 2f5bacbac\n\tcreation_time = 60896954\n\ttype = 3\n\tflags = 0xc\n\ttoguid = a6298c673d1078f4\n'
        printf '\tfromguid = 2337264959843bca\n\ttoname = %s\n\tpayloadlen = 0\n\n' "$of"
        [ "$fault" = warns ] && echo "Expected checksum differs from checksum in stream."
        echo 'OBJECT object = 1 type = 23 bonustype = 0 blksz = 16384 bonuslen = 0 dn_slots = 1 raw_bonuslen = 0 flags = 0 maxblkid = 0 indblkshift = 17 nlevels = 2 nblkptr = 1'
        awk '{ printf "WRITE object = 1 type = 23 checksum type = 7 compression type = 2 flags = 0 offset = %d logical_size = 16384 compressed_size = 4096 payload_size = 4096 props = 8200000000 salt = 0000000000000000 iv = 000000000000000000000000 mac = 00000000000000000000000000000000\n", $1; writes++ }
            END {
                print "END checksum = 205ae91f75/35545010a0db/3b7b71d530b6cb/315c645075fce7b7\nSUMMARY:"
                printf "\tTotal DRR_BEGIN records = 1 (0 bytes)\n\tTotal DRR_END records = 1 (0 bytes)\n\tTotal DRR_OBJECT records = 1 (0 bytes)\n\tTotal DRR_FREEOBJECTS records = 0 (0 bytes)\n"
                printf "\tTotal DRR_WRITE records = %d (%d bytes)\n\tTotal DRR_WRITE_BYREF records = 0 (0 bytes)\n\tTotal DRR_WRITE_EMBEDDED records = 0 (0 bytes)\n", writes, writes * 4096
                printf "\tTotal DRR_FREE records = 0 (0 bytes)\n\tTotal DRR_SPILL records = 0 (0 bytes)\n\tTotal records = %d\n", writes + 3
                printf "\tTotal payload size = %d (0x0)\n\tTotal header overhead = %d (0x0)\n\tTotal stream length = %d (0x0)\n", writes * 4096, writes * 312, writes * 4408
            }'
    }
    if [ "$fault" = truncated ]; then answer | head -n -1; else answer; fi
    ;;
*) refuse "unknown: $name $*" ;;
esac
