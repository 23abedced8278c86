# shellcheck shell=bash
# What hack/vm needs before it can boot: QEMU, and for each kernel a guest in target/vm/guest with
#
#   kernel           to be booted with -kernel
#   initramfs.cpio   PID 1 and the modules that it needs to reach the disk
#   root/            the tree that becomes the disk: busybox, /etc, modules
#   busybox          for the host: its cpio packs each run's job
#
# Sourced, never run; uses lib/debian.sh and hack/vm's variables kernel, suite, guest and cache.

# QEMU 7.2, bookworm's own, panics a 6.12 guest.
qemu_suits() {
    local version
    version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p') ||
        return 1
    [[ -n $version && ($version -ge 10 || $kernel == 6.1) ]]
}

install_qemu() {
    local candidate codename sources
    candidate=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: \([0-9]*:\)\?\([0-9]*\).*/\2/p')
    if [[ -n $candidate && $candidate -ge 10 ]]; then
        host_install qemu-system-x86_64 qemu-system-x86
        return
    fi
    # The host's own sources and, for this one command, its release's backports.
    codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")-backports
    sources=$debian_cache/host-and-backports
    rm -rf "$sources"
    mkdir -p "$sources/parts" "$sources/lists/partial"
    cp /etc/apt/sources.list.d/*.{list,sources} "$sources/parts/" 2>/dev/null || true
    debian_source "$codename" >"$sources/parts/podwright-backports.list"
    host_options=(-o Dir::Etc::SourceParts="$sources/parts" -o Dir::State::Lists="$sources/lists"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    host_apt update
    host_install qemu-system-x86_64 --target-release "$codename" qemu-system-x86
    host_options=()
    qemu_suits || die "kernel $kernel needs QEMU 10 and this host has $(qemu-system-x86_64 --version | head -1)"
}

make_guest() {
    printf '%s: making the %s guest (once)\n' "$PROGRAM" "$kernel" >&2
    need gcc gcc
    need mke2fs e2fsprogs
    need xz xz-utils
    need zstd zstd
    local new=$guest.new kernel_package debs image busybox
    rm -rf "$new"
    mkdir -p "$new/root" "$new/initramfs"

    foreign_lists "$suite"
    kernel_package=$(foreign_apt "$suite" apt-cache depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" { print $2 }')
    debs=$(debian_download "$suite" "$kernel_package" && debian_download bookworm busybox-static)
    while read -r deb; do
        dpkg-deb --extract "$deb" "$new/debs"
    done <<<"$debs"
    image=$(echo "$new"/debs/boot/vmlinuz-*)
    busybox=$new/debs/bin/busybox
    extract_kernel "$image" "$new/kernel"

    make_root "$new/root" "$busybox"
    install_modules "$new/debs" "$new/root" "$busybox" "${image##*/vmlinuz-}" "$new/initramfs"
    gcc -O2 -static -Wall -Wextra -o "$new/initramfs/init" "$here/lib/vm-init.c"
    pack "$busybox" "$new/initramfs" >"$new/initramfs.cpio"
    cp "$busybox" "$new/busybox"
    rm -rf "$new/debs" "$new/initramfs"

    # Guests of older recipes, except those that a run of today may be reading.
    find "$cache/guest" -mindepth 1 -maxdepth 1 -name "$kernel-*" -mtime +0 ! -path "$new" -exec rm -rf {} +
    mv "$new" "$guest"
}

# A zstd bzImage takes QEMU's emulated processor 0.9 s to unpack. The kernel within, an ELF file with a PVH entry, boots
# directly. Offsets: Documentation/arch/x86/boot.rst, setup_sects, payload_offset, payload_length (with a trailer of 4).
extract_kernel() {
    local image=$1 out=$2 sectors offset length magic
    sectors=$(od -An -tu1 -j $((0x1f1)) -N1 "$image")
    offset=$(od -An -tu4 -j $((0x248)) -N4 "$image")
    length=$(od -An -tu4 -j $((0x24c)) -N4 "$image")
    offset=$(((sectors + 1) * 512 + offset))
    magic=$(od -An -tx1 -j "$offset" -N4 "$image" | tr -d ' ')
    if [[ $magic == 28b52ffd ]]; then
        dd if="$image" bs=1M iflag=skip_bytes,count_bytes skip="$offset" count=$((length - 4)) status=none |
            zstd -dc >"$out"
    else # 6.1 is LZ4, which costs next to nothing to unpack
        cp "$image" "$out"
    fi
}

make_root() {
    local root=$1 busybox=$2 applet
    mkdir -p "$root"/{bin,dev,etc,home,lib/modules,mnt,opt,proc,root,run,sbin,srv,sys,tmp,usr,var}
    mkdir -p "$root"/usr/{bin,local/bin,sbin} "$root"/var/{lib,log,tmp}
    chmod 700 "$root/root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    ln -s ../run "$root/var/run"
    install -m 755 "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    ln -s ../bin/modprobe "$root/sbin/modprobe" # where the kernel looks for it
    cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
END
    cat >"$root/etc/group" <<'END'
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
END
    printf '127.0.0.1 localhost vm\n::1 localhost\n' >"$root/etc/hosts"
    : >"$root/etc/resolv.conf"
    echo vm >"$root/etc/hostname"
    printf 'ID=podwright-vm\nPRETTY_NAME="the guest of hack/vm, Linux %s"\n' "$kernel" >"$root/etc/os-release"
}

# What a container runtime, its network and its tests may use; more would make every disk slower to make.
readonly module_trees=(
    drivers/block/{loop,virtio_blk}.ko drivers/char/virtio_console.ko drivers/virtio
    drivers/net/{dummy,macvlan,tun,veth}.ko drivers/net/{ipvlan,vxlan}
    fs/{fuse,overlayfs,squashfs}
    net/{802,8021q,bridge,ipv4,ipv6,llc,netfilter,netlink,packet,sched,sctp,unix}
)
readonly early_modules=(virtio_pci virtio_blk virtio_console) # to reach the disk and the ports
readonly late_modules=(overlay veth bridge nf_tables)         # what every node has loaded

# install_modules DEBS ROOT BUSYBOX RELEASE INITRAMFS
install_modules() {
    local source target=$2/lib/modules/$4 busybox=$3 initramfs=$5 tree path
    source=$1/lib/modules/$4
    [[ -d $source ]] || source=$1/usr/lib/modules/$4
    mkdir -p "$target" "$initramfs/job"
    cp "$source"/modules.{builtin,order} "$target/"
    # Everything unpacked for depmod first, then only what is wanted and what that depends on.
    mv "$source/kernel" "$target/kernel"
    find "$target/kernel" -name '*.ko.xz' -exec xz -d {} +
    "$busybox" depmod -b "$2" "$4"
    for tree in "${module_trees[@]}"; do
        [[ ! -e $target/kernel/$tree ]] || (cd "$target" && find "kernel/$tree" -name '*.ko')
    done | resolve "$target" >"$initramfs/wanted"
    (cd "$target" && find kernel -name '*.ko' | sort | comm -23 - <(sort "$initramfs/wanted") | xargs rm)
    find "$target/kernel" -type d -empty -delete
    rm "$initramfs/wanted"
    "$busybox" depmod -b "$2" "$4"
    printf '%s\n' "${early_modules[@]}" | module_paths "$target" | resolve "$target" >"$initramfs/job/early"
    printf '%s\n' "${late_modules[@]}" | module_paths "$target" | resolve "$target" >"$initramfs/job/late"
    while read -r path; do
        install -D -m 644 "$target/$path" "$initramfs/lib/modules/$4/$path"
    done <"$initramfs/job/early"
}

# Module names to paths; what is not there is built into that kernel.
module_paths() {
    local name
    while read -r name; do
        (cd "$1" && find kernel -name "$name.ko")
    done
}

# Paths on stdin to the same and all they depend on, each after its dependencies, by modules.dep.
resolve() {
    awk -v table="$1/modules.dep" '
        function visit(path, parts, count, i) {
            if (path in seen) return
            seen[path] = 1
            count = split(needs[path], parts, " ")
            for (i = 1; i <= count; i++) visit(parts[i])
            print path
        }
        BEGIN {
            while ((getline line < table) > 0) {
                colon = index(line, ":")
                needs[substr(line, 1, colon - 1)] = substr(line, colon + 1)
            }
        }
        { visit($1) }'
}

# pack BUSYBOX DIRECTORY: a newc archive of its contents. The kernel reads several, one after the other.
pack() {
    (cd "$2" && find . -mindepth 1 | sort | "$1" cpio -o -H newc -R 0:0 2>/dev/null)
}
