#!/bin/sh
# Writes a root filesystem with this machine's own C compiler to a tar file, so that the demo needs no network:
# the installed files of gcc, of everything it depends on, and a static busybox for the shell.
#
#   scripts/toolchain.sh OUT.tar
#
# Debian and its relatives only. Same packages, same bytes.
set -eu

out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The packages that gcc needs: a walk over the installed ones, the first installed alternative of each dependency.
dpkg-query -W -f='${Package}\t${Status}\t${Depends}, ${Pre-Depends}\n' | awk -F'\t' -v wanted="gcc libc6-dev" '
    $2 ~ / installed$/ { depends[$1] = $3 }
    END {
        n = split(wanted, queue, " ")
        for (i = 1; i <= n; i++) seen[queue[i]] = 1
        for (i = 1; i <= n; i++) {
            print queue[i]
            m = split(depends[queue[i]], clauses, /, */)
            for (c = 1; c <= m; c++) {
                k = split(clauses[c], choices, /\|/)
                for (j = 1; j <= k; j++) {
                    name = choices[j]
                    gsub(/\(.*\)|:any|[ \t]/, "", name)
                    if (name in depends) {
                        if (!(name in seen)) { seen[name] = 1; queue[++n] = name }
                        break
                    }
                }
            }
        }
    }' | sort > "$work/packages"

# Their files: without documentation, sanitizers and translations. Where /lib is a link, dpkg still says /lib.
xargs dpkg-query -L < "$work/packages" | sort -u | while IFS= read -r file; do
    case $file in
        /usr/share/* | /etc/* | */lib*san.* | */lib*san_preinit.o | */plugin/* | */cc1plus | */lto1 | */gconv/*) continue ;;
        /lib/* | /bin/* | /sbin/* | /lib64/*) [ -L "/${file#/}" ] || [ -e "$file" ] || continue
            top=${file#/}; top=${top%%/*}
            if [ -L "/$top" ]; then file=/usr$file; fi ;;
    esac
    if [ -d "$file" ] && [ ! -L "$file" ]; then continue; fi
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\n' "${file#/}"; fi
done | sort -u > "$work/files"
for top in bin lib lib64 sbin; do
    if [ -L "/$top" ]; then echo "$top" >> "$work/files"; fi
done

mkdir -p "$work/extra/usr/bin" "$work/extra/tmp" "$work/extra/etc" "$work/extra/root"
chmod 1777 "$work/extra/tmp"
cp "$(command -v busybox)" "$work/extra/usr/bin/busybox"
for applet in $("$work/extra/usr/bin/busybox" --list); do
    # What the packages bring (ar, strings, …) is the real thing.
    if ! grep -Fqx "usr/bin/$applet" "$work/files" && [ "$applet" != busybox ]; then
        ln -s busybox "$work/extra/usr/bin/$applet"
    fi
done
echo 'root:x:0:0:root:/root:/bin/sh' > "$work/extra/etc/passwd"
echo 'root:x:0:' > "$work/extra/etc/group"
if [ ! -L /bin ]; then ln -s usr/bin/busybox "$work/extra/sh" && mkdir "$work/extra/bin" && mv "$work/extra/sh" "$work/extra/bin/sh"; fi

reproducible="--sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu"
# shellcheck disable=SC2086 # options, not one word
tar $reproducible --no-recursion -cf "$out" -C / --files-from "$work/files"
# shellcheck disable=SC2086
tar $reproducible -rf "$out" -C "$work/extra" .
