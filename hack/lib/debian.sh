# shellcheck shell=bash
# Debian packages for the scripts here: sourced, never run.
#
# Packages come from the mirror that this machine's own apt is configured with, found when it is needed, so that no
# host name stands in this repository. Other releases than the host's (the kernel of trixie on bookworm, say) are read
# through an apt that has its own sources, lists and empty package database: the host's apt never hears of them.
#
# The caller sets `debian_cache`, a directory that may be deleted at any time, and `PROGRAM` for messages.

die() {
    printf '%s: %s\n' "${PROGRAM:?}" "$*" >&2
    exit 125
}

# The URI that the host's own release comes from.
debian_mirror() {
    if [[ -n ${PODWRIGHT_DEBIAN_MIRROR:-} ]]; then
        printf '%s\n' "$PODWRIGHT_DEBIAN_MIRROR"
        return
    fi
    local codename uri
    codename=$(. /etc/os-release && [[ $ID == debian ]] && printf '%s' "${VERSION_CODENAME:-}") ||
        die "this host is not Debian, so its apt has no Debian mirror; set PODWRIGHT_DEBIAN_MIRROR to the URL of one"
    uri=$(configured_uri "$codename")
    if [[ -z $uri ]]; then # apt only tells what it has lists of, and a fresh machine has none
        apt-get -qq update >&2 || die "apt-get update failed: see above"
        uri=$(configured_uri "$codename")
    fi
    [[ -n $uri ]] || die "apt has no source for $codename; set PODWRIGHT_DEBIAN_MIRROR to the URL of a mirror"
    printf '%s\n' "${uri%/}"
}

configured_uri() {
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$1" '$1 == release && !found { found = 1; print $2 }' # reads all: pipefail and SIGPIPE
}

# debian_source SUITE: the line for a sources.list.
debian_source() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=
    mirror=$(debian_mirror)
    [[ ! -e $keyring ]] || signed="[signed-by=$keyring] "
    printf 'deb %s%s %s main\n' "$signed" "$mirror" "$1"
}

# Only what is needed to choose and fetch packages, with bounds on waiting; as the user who runs, so that the cache
# may be below a home directory that apt's own user cannot read.
readonly apt_options=(
    -qq
    -o APT::Sandbox::User=root
    -o APT::Install-Recommends=false
    -o Acquire::Languages=none
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
    -o Acquire::Retries=3
    -o Acquire::http::Timeout=30
)

# foreign_apt SUITE TOOL ARGS...: apt-get or apt-cache that sees one suite and nothing of the host.
foreign_apt() {
    local state=$debian_cache/apt/$1 tool=$2
    shift 2
    "$tool" "${apt_options[@]}" \
        -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State="$state" -o Dir::State::Lists="$state/lists" \
        -o Dir::State::Status="$state/status" -o Dir::Cache="$state" "$@"
}

# Makes the lists of SUITE there; they are read again only when the cache is deleted, so that a cache stays what it is.
foreign_lists() {
    local suite=$1 state=$debian_cache/apt/$1
    [[ ! -e $state/complete ]] || return 0
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    : >"$state/status"
    debian_source "$suite" >"$state/sources.list"
    foreign_apt "$suite" apt-get update >&2 || die "cannot read Debian $suite from $(debian_mirror): see above"
    touch "$state/complete"
}

# debian_download SUITE PACKAGE...: the packages alone. Prints the files' paths.
debian_download() {
    local suite=$1
    shift
    foreign_lists "$suite"
    mkdir -p "$debian_cache/debs/$suite"
    (cd "$debian_cache/debs/$suite" && foreign_apt "$suite" apt-get download "$@" >&2) ||
        die "cannot download $* of Debian $suite: see above"
    local package
    for package in "$@"; do
        printf '%s\n' "$debian_cache/debs/$suite/${package}"_*.deb
    done
}

# debian_closure SUITE PACKAGE...: the names of the packages and of all they depend on, as apt would choose them for an
# empty machine, sorted.
debian_closure() {
    local suite=$1
    shift
    foreign_lists "$suite"
    foreign_apt "$suite" apt-get install --simulate "$@" | awk '$1 == "Inst" { print $2 }' | sort ||
        die "cannot resolve $* of Debian $suite: see above"
}

# need TOOL PACKAGE: installs what the host lacks, once.
need() {
    command -v "$1" >/dev/null || host_install "$1" "$2"
}

# Python with its library, which hack/images needs: a minimal Debian has none, or python3-minimal, which lacks gzip.
need_python() {
    python3 -c 'import gzip, tarfile' 2>/dev/null || host_install python3 python3
}

host_install() {
    local tool=$1
    shift
    [[ $(id -u) == 0 ]] || die "$tool is missing; as root: apt-get install $*"
    printf '%s: installing %s\n' "$PROGRAM" "$tool" >&2
    # A fresh machine has no lists, old ones name what the mirror has no more.
    apt-cache show "$@" &>/dev/null || host_apt update || die "apt-get update failed: see above"
    host_apt install --yes "$@" || { host_apt update && host_apt install --yes "$@"; } ||
        die "cannot install $*: see above"
}

# More options for the host's apt, for a package that its own sources lack.
host_options=()

# DPkg::Lock::Timeout: another run may be installing the same.
host_apt() {
    DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get "${apt_options[@]}" -o DPkg::Lock::Timeout=120 "${host_options[@]}" "$@" >/dev/null
}
