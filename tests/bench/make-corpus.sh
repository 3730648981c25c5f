#!/usr/bin/env bash
# Makes the three disks that the bench measures on. Root (loop mounts); about 15 GiB at the default size.
#   make-corpus.sh DIR [SIZE]      SIZE of each disk, default 8G
# base.img   a server: system files of this machine, crate archives, a database-like file, logs, random media, stale bytes in free space
# delta.img  the same server a cycle later: pages of the database rewritten, logs grown, new files, deletions
# clone.img  a second server, installed separately: the same system files in another order on a fresh file system, data of its own
# Sizes move with the machine that it is made on: figures are quoted as ratios to peers on the same corpus.
set -euo pipefail
D=$(realpath -m "${1:?usage: make-corpus.sh DIR [SIZE]}"); SIZE=${2:-8G}; M=$D/mnt
mkdir -p "$M"
if [ -s "$D/corpus.txt" ]; then echo "corpus is there: $D"; exit 0; fi
trap 'mountpoint -q "$M" && umount "$M" || true' EXIT
GIB=$(( $(numfmt --from=iec "$SIZE") / 1073741824 )); [ "$GIB" -ge 1 ] || { echo "SIZE is at least 1G" >&2; exit 2; }
mk() { rm -f "$1"; truncate -s "$SIZE" "$1"; mkfs.ext4 -q -F -U "$2" -E "hash_seed=$2,lazy_itable_init=0,lazy_journal_init=0,nodiscard" "$1"; }
mnt() { mount -o loop "$1" "$M"; }
umnt() { sync; umount "$M"; }
# random bytes that are the same in every run: rnd SEED MIB
rnd() { head -c $(($2 * 1048576)) /dev/zero | openssl enc -aes-128-ctr -nosalt -pass "pass:$1" -pbkdf2 -iter 1 2>/dev/null; }
# system files until the budget (KiB) is spent, in the order given
copy_os() { mkdir -p "$M/usr"; python3 - "$@" <<'PY' | tar -C / --null -T - -cf - 2>/dev/null | tar -C "$M" -xf -
import os,sys
budget=int(sys.argv[1])*1024
for top in sys.argv[2:]:
    for folder,folders,files in os.walk('/usr/'+top):
        folders.sort()
        for name in sorted(files):
            path=os.path.join(folder,name)
            if os.path.islink(path) or '/__pycache__/' in path or not os.path.isfile(path): continue
            size=os.path.getsize(path)
            if 0 < size <= budget//4:
                budget-=size; sys.stdout.buffer.write(os.fsencode(path)+b'\0')
        if budget < 1<<21: sys.exit()
PY
}
# a table file of 8 KiB pages, compressible as rows are
table() { python3 - "$1" "$2" <<'PY'
import sys,random
path,mib=sys.argv[1],int(sys.argv[2]); r=random.Random(7)
with open(path,'wb') as f:
    for page in range(mib*128):
        rows=b''.join(b'%010d|%08x|account|%-40d|' % (page*90+i, r.getrandbits(32), 0) for i in range(105))
        f.write((page.to_bytes(8,'little')+rows).ljust(8192,b'\0')[:8192])
PY
}
churn() { python3 - "$1" "$2" <<'PY'
import sys,random,os
path,pages=sys.argv[1],int(sys.argv[2]); r=random.Random(11); n=os.path.getsize(path)//8192
with open(path,'r+b') as f:
    for _ in range(pages):
        f.seek(r.randrange(n)*8192+8+r.randrange(100)*75); f.write(b'%08x' % r.getrandbits(32))
PY
}
log() { seq "$1" "$2" | awk '{printf "2026-11-21T09:00:00Z host app[%d]: request id=%d path=/v1/items/%d status=200\n",$1%977,$1,($1*7919)%100003}'; }

echo "== base.img"; mk "$D/base.img" 11111111-2222-4333-8444-555555555555; mnt "$D/base.img"
copy_os $((GIB * 520000)) bin sbin libexec lib share; mkdir -p "$M/srv" "$M/var/log" "$M/db"
table "$M/db/accounts" $((GIB * 48)); rnd base $((GIB * 32)) > "$M/srv/media.bin"; log 1 $((GIB * 50000)) > "$M/var/log/app.log"
rnd stale $((GIB * 48)) > "$M/srv/deleted.bin"; sync; rm "$M/srv/deleted.bin"; umnt
echo "== delta.img"; cp --sparse=always "$D/base.img" "$D/delta.img"; mnt "$D/delta.img"
churn "$M/db/accounts" $((GIB * 1500)); log $((GIB * 50000 + 1)) $((GIB * 62000)) >> "$M/var/log/app.log"
mkdir -p "$M/opt"; find /usr/include -xdev -type f -print0 | tar -C / --null -T - -cf - 2>/dev/null | tar -C "$M/opt" -xf -
rnd delta $((GIB * 4)) > "$M/srv/upload.bin"; rm -rf "$M/usr/share/doc" "$M/usr/share/locale"; umnt
echo "== clone.img"; mk "$D/clone.img" 99999999-8888-4777-8666-555555555555; mnt "$D/clone.img"
rnd clone $((GIB * 16)) > "$M/first.bin"; copy_os $((GIB * 520000)) share lib libexec sbin bin; mkdir -p "$M/db"
table "$M/db/accounts" $((GIB * 16)); umnt
for f in base delta clone; do printf '%s apparent=%s allocated=%s\n' $f "$(stat -c %s "$D/$f.img")" "$(($(stat -c %b "$D/$f.img") * 512))"; done | tee "$D/corpus.txt"
