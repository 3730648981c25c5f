#!/bin/sh
# Stands in for LVM, dmsetup and thin_delta, by the name that it is called by: keeps files as snapshots of loop devices, and prints what the real programs print, as
# others recorded it. Options that the agent does not use are refused, as the real ones refuse unknown ones.
LAB='FOLDER'
name=${0##*/}
echo "$name $*" >>"$LAB/log"
[ "$LC_ALL" = C ] || { echo "LC_ALL is not C" >&2; exit 90; }
refuse() { echo "  $*" >&2; exit 5; }
fault=$(cat "$LAB/fault/$name" 2>/dev/null)
[ "$fault" = fails ] && refuse "Device vg0-pool-tpool not found"

row() { # name path segtype pool origin id tags
    printf '%s                  {"vg_name":"vg0", "lv_name":"%s", "lv_path":"%s", "segtype":"%s", "pool_lv":"%s", "origin":"%s", "thin_id":"%s", "lv_tags":"%s"}' "$comma" "$@"
    comma=',
'
}

case $name in
lvs)
    select=
    while [ $# -gt 0 ]; do
        case $1 in
        --reportformat) [ "$2" = json ] || refuse "format"; shift ;;
        --options) [ "$2" = vg_name,lv_name,lv_path,segtype,pool_lv,origin,thin_id,lv_tags ] || refuse "fields"; shift ;;
        --select) select=$2; shift ;;
        vg0) ;;
        *) refuse "unknown: $1" ;;
        esac
        shift
    done
    comma=
    printf '  {\n      "report": [\n          {\n              "lv": [\n'
    for file in "$LAB"/origins/*; do
        read -r device major minor id <"$file"
        case $select in '' | "lv_kernel_major=$major && lv_kernel_minor=$minor") ;; *) continue ;; esac
        row "${file##*/}" "$device" thin pool '' "$id" ''
    done
    if [ -z "$select" ]; then
        row pool '' thin-pool '' '' '' ''
        for file in "$LAB"/snaps/*.id; do
            [ -e "$file" ] || continue
            snap=${file%.id}
            row "${snap##*/}" "$LAB/dev/vg0/${snap##*/}" thin pool "$(cat "$snap.origin")" "$(cat "$file")" "$(cat "$snap.tags")"
        done
    fi
    printf '\n              ]\n          }\n      ]\n  }\n'
    ;;
lvcreate)
    [ "$1 $2" = "--snapshot --name" ] || refuse "unknown: $1 $2"
    snap=$3
    shift 3
    [ "$1 $2 $3 $4 $5 $6 $7 $8" = "--permission r --activate n --autobackup n --addtag landfall" ] || refuse "unknown: $*"
    origin=${9#vg0/}
    [ -e "$LAB/origins/$origin" ] || refuse "Failed to find logical volume \"$9\""
    [ -e "$LAB/snaps/$snap.id" ] && refuse "Logical Volume \"$snap\" already exists in volume group \"vg0\""
    read -r device major minor id <"$LAB/origins/$origin"
    # Device mapper freezes the file system on the device itself, and fails where somebody else has.
    mount=$(cat "$LAB/mounted/$origin" 2>/dev/null)
    if [ -n "$mount" ]; then
        fsfreeze -f "$mount" || refuse "device-mapper: suspend ioctl on (253:4) failed: Device or resource busy"
    fi
    cat "$device" >"$LAB/snaps/$snap"
    [ -n "$mount" ] && fsfreeze -u "$mount"
    next=$(($(cat "$LAB/next") + 1))
    echo "$next" >"$LAB/next"
    echo "$origin" >"$LAB/snaps/$snap.origin"
    echo landfall >"$LAB/snaps/$snap.tags"
    echo "$next" >"$LAB/snaps/$snap.id"
    echo "  Logical volume \"$snap\" created."
    ;;
lvchange)
    [ "$1 $2 $3 $4 $5" = "--activate y --ignoreactivationskip --autobackup n" ] || refuse "unknown: $*"
    snap=${6#vg0/}
    [ -e "$LAB/snaps/$snap.id" ] || refuse "Failed to find logical volume \"$6\""
    # udev is later.
    (sleep 0.1; ln -sf "$LAB/snaps/$snap" "$LAB/dev/vg0/$snap") >/dev/null 2>&1 &
    ;;
lvremove)
    [ "$1 $2 $3" = "--yes --autobackup n" ] || refuse "unknown: $*"
    snap=${4#vg0/}
    # Anything else of the host's is gone for ever.
    [ -e "$LAB/snaps/$snap.id" ] || { echo "$4" >>"$LAB/wrongly-removed"; refuse "Failed to find logical volume \"$4\""; }
    rm -f "$LAB/snaps/$snap" "$LAB/snaps/$snap".* "$LAB/dev/vg0/$snap"
    echo "  Logical volume \"$snap\" successfully removed."
    ;;
dmsetup)
    [ "$2" = vg0-pool-tpool ] || refuse "Device $2 not found"
    held=$(cat "$LAB/held")
    case "$1 $3 $4" in
    "status  ") echo "0 2097152 thin-pool 3 $(cat "$LAB/usage") $held rw discard_passdown queue_if_no_space - 1024" ;;
    "message 0 reserve_metadata_snap")
        [ "$held" = - ] || refuse "device-mapper: message ioctl on vg0-pool-tpool failed: Device or resource busy"
        echo 95 >"$LAB/held"
        ;;
    "message 0 release_metadata_snap")
        [ "$held" = - ] && refuse "device-mapper: message ioctl on vg0-pool-tpool failed: Invalid argument"
        echo - >"$LAB/held"
        ;;
    *) refuse "unknown: $*" ;;
    esac
    ;;
thin_delta)
    if [ "$1" = -V ]; then cat "$LAB/version"; exit; fi
    [ "$1 $2 $4 $6" = "-m --thin1 --thin2 /dev/mapper/vg0-pool_tmeta" ] || refuse "unknown: $*"
    [ "$(cat "$LAB/held")" = - ] && refuse "no current metadata snap"
    if [ "$fault" = hangs ]; then echo $$ >"$LAB/hanging"; exec sleep 600; fi
    of() { for file in "$LAB"/snaps/*.id; do [ "$(cat "$file")" = "$1" ] && echo "${file%.id}"; done; }
    old=$(of "$3") new=$(of "$5")
    [ -n "$old" ] && [ -n "$new" ] || refuse "volume not found"
    blocks=$((($(wc -c <"$new") + 65535) / 65536))
    answer() {
        [ "$fault" = warns ] && echo "warning: something"
        printf '<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">\n  <diff left="%s" right="%s">\n' "$1" "$2"
        cmp -l "$old" "$new" 2>/dev/null | awk -v blocks="$blocks" '
            function same(to) { if (to > at) printf "    <same begin=\"%d\" length=\"%d\"/>\n", at, to - at }
            { block = int(($1 - 1) / 65536); if (block < at) next; same(block); printf "    <different begin=\"%d\" length=\"1\"/>\n", block; at = block + 1 }
            END { same(blocks) }'
        printf '  </diff>\n</superblock>\n'
    }
    if [ "$fault" = truncated ]; then answer "$3" "$5" | head -n -1; else answer "$3" "$5"; fi
    ;;
esac
