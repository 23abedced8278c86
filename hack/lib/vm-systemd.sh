# shellcheck shell=bash
# What `hack/vm --systemd` boots beside the guest: Debian's systemd as PID 1, in target/vm/systemd.
#
# Only the manager, systemctl and the libraries of both: no journald, no udev, no dbus-daemon, no getty. lib/vm-init.c does first
# what it does in any guest, then becomes systemd, which runs the command as a service.
#
# Sourced, never run; uses lib/debian.sh and hack/vm's variables suite and systemd_tree.

make_systemd() {
    printf '%s: making systemd of %s for the guest (once)\n' "$PROGRAM" "$suite" >&2
    local new=$systemd_tree.new debs deb libraries
    libraries=usr/lib/$(uname -m)-linux-gnu
    rm -rf "$new"
    mkdir -p "$new"/debs/usr/{bin,lib,lib64,sbin} "$new/root/$libraries" "$new"/root/usr/{bin,lib64,lib/systemd/system} \
        "$new/root/etc"
    local directory
    for directory in bin lib lib64 sbin; do # what older packages have outside of /usr comes into it
        ln -s "usr/$directory" "$new/debs/$directory"
    done
    # shellcheck disable=SC2046 # names of packages
    debs=$(debian_download "$suite" $(debian_closure "$suite" systemd))
    while read -r deb; do
        dpkg-deb --extract "$deb" "$new/debs"
    done <<<"$debs"

    # All shared libraries of those packages in one directory, where the loader looks first: which are opened only later, no file says.
    find "$new/debs/$libraries" -maxdepth 2 -name '*.so*' ! -path '*/ossl-modules/*' \
        -exec cp --no-dereference --no-clobber -t "$new/root/$libraries" {} +
    cp --no-dereference "$new"/debs/usr/lib64/ld-linux* "$new/root/usr/lib64/"
    find "$new/debs/usr/lib" -name 'ld-linux*' ! -type l -exec cp --no-clobber -t "$new/root/$libraries" {} +
    ln -s usr/lib64 "$new/root/lib64"
    cp "$new/debs/usr/bin/systemctl" "$new/root/usr/bin/"
    cp "$new"/debs/usr/lib/systemd/systemd "$new/root/usr/lib/systemd/"
    [[ ! -e $new/debs/usr/lib/systemd/systemd-executor ]] ||
        cp "$new/debs/usr/lib/systemd/systemd-executor" "$new/root/usr/lib/systemd/"
    cp "$new"/debs/usr/lib/systemd/system/*.target "$new/root/usr/lib/systemd/system/"
    echo 0123456789abcdef0123456789abcdef >"$new/root/etc/machine-id" # else it takes this for a machine's first boot
    mv "$new/root" "$systemd_tree"
    rm -rf "$new"
}
