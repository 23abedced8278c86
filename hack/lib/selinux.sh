# shellcheck shell=bash
# The policy of tests/v2_selinux.rs: sourced after lib/debian.sh, never run.

# selinux_policy FILE: compiles tests/selinux/policy.conf to FILE, by Debian's checkpolicy, which is unpacked and not installed.
selinux_policy() {
    local unpacked policy=$1
    unpacked=$(mktemp -d)
    dpkg-deb --extract "$(debian_download bookworm checkpolicy)" "$unpacked"
    # A thousand categories have a line each.
    awk '$0 == "@CATEGORIES@" { for (i = 0; i < 1024; i++) print "category c" i ";"; next } { print }' \
        tests/selinux/policy.conf >"$unpacked/policy.conf"
    # 33: what Linux 6.1 and later read. What the policy does not name is allowed.
    "$unpacked/usr/bin/checkpolicy" -M -U allow -c 33 -o "$policy" "$unpacked/policy.conf" >&2 ||
        die "tests/selinux/policy.conf does not compile: see above"
    rm -rf "$unpacked"
}
