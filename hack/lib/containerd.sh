#!/usr/bin/env bash
# hack/lib/containerd.sh DIRECTORY [PACKAGE...]: what hack/bench compares with, where it is not installed: containerd and runc of Debian, or
# these packages, with all that they need, unpacked below DIRECTORY for a chroot. The host gets nothing of it.
# PODWRIGHT_CONTAINERD_SUITE chooses the release (sid).
set -euo pipefail

# shellcheck source=hack/lib/debian.sh
. "$(dirname "$(readlink -f "$0")")/debian.sh"
PROGRAM=hack/lib/containerd.sh
root=$(readlink -m "${1:?a directory}")
suite=${PODWRIGHT_CONTAINERD_SUITE:-sid}
debian_cache=$root.cache
shift
(($#)) || set -- containerd runc

[[ ! -e $root/complete ]] || exit 0
rm -rf "$root"
mkdir -p "$debian_cache" "$root"/{usr/{bin,sbin,lib,lib64},proc,sys,dev,run,tmp,etc,var/tmp}
for directory in bin sbin lib lib64; do
    ln -s "usr/$directory" "$root/$directory"
done
mapfile -t packages < <(debian_closure "$suite" "$@")
debian_download "$suite" "${packages[@]}" | while read -r package; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
done
touch "$root/complete"
