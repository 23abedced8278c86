#!/bin/sh
# The part of hack/demo that runs where the cgroups are: in the guest of hack/vm, or on a host. It prints what it shows and checks it
# line by line; the last line has the counts, and the exit status is 1 when a check failed.
#
# Needs only a POSIX shell with busybox' or Debian's programs, and from hack/demo: PODWRIGHT (the program), IMAGES, MANIFESTS
# (directories), LIMITS (no: this host has no controllers), WHOLE (yes: nothing else runs on this machine, so that all of it can be
# compared before and after).
set -u

: "${PODWRIGHT:?}" "${IMAGES:?}" "${MANIFESTS:?}"
LIMITS=${LIMITS:-yes}
WHOLE=${WHOLE:-no}

work=$(mktemp -d)
export PODWRIGHT_ROOT="$work/root" PODWRIGHT_STATE="$work/state" PODWRIGHT_CGROUP_ROOT="/podwright-demo-$$"
# The host's own interfaces are to be at the end as they were.
export PODWRIGHT_NETWORK_MODE=none
export LC_ALL=C
mkdir "$PODWRIGHT_ROOT" "$PODWRIGHT_STATE"
[ "$LIMITS" = yes ] || export PODWRIGHT_CGROUP_ALLOW_UNENFORCED=true

cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
tracing=/sys/kernel/tracing
passed=0 failed=0 running=''

readonly patience_s=600      # for anything that should happen: 20 000 forks in an emulated machine on a busy host take minutes
readonly measured_s=10       # how long the busy loop is watched
readonly memory_limit=134217728
readonly example=images.my-company.example # as the documentation has it

# --- how it tells

part() { printf '\n== %s\n' "$*"; }
ok() { passed=$((passed + 1)) && printf 'ok    %s\n' "$*"; }
bad() { failed=$((failed + 1)) && printf 'FAIL  %s\n' "$*"; }
show() { sed 's/^/      /' "$@"; }

# is WHAT GOT EXPECTED
is() {
    if [ "$2" = "$3" ]; then ok "$1: $2"; else bad "$1: expected $3, got ${2:-nothing}"; fi
}

# between WHAT GOT LOWEST HIGHEST: integers
between() {
    if [ "${2:-x}" -ge "$3" ] 2>/dev/null && [ "$2" -le "$4" ]; then
        ok "$1: $2"
    else
        bad "$1: expected $3 to $4, got ${2:-nothing}"
    fi
}

# holds WHAT COMMAND...
holds() {
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then ok "$what"; else bad "$what: not so: $*"; fi
}

# never WHAT COMMAND...
never() {
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then bad "$what: but: $*"; else ok "$what"; fi
}

# await COMMAND...: until it succeeds; fails when that takes too long, or when the pod that is to bring it about has ended.
await() {
    local end=$(($(date +%s) + patience_s)) over=no
    until "$@" >/dev/null 2>&1; do
        [ $over = no ] && [ "$(date +%s)" -lt "$end" ] || return 1
        [ -z "$running" ] || alive "$running" || over=yes # and look once more: it may have come just before
        [ $over = yes ] || sleep 0.1
    done
}

# awaits WHAT COMMAND...: the same as a check.
awaits() {
    local what=$1
    shift
    if await "$@"; then ok "$what"; else bad "$what: not within $patience_s s, or the pod has ended: $*"; fi
}

# --- what podwright says of its pods: its records (src/state/paths.rs)

# run POD: runs MANIFESTS/POD.yaml, or $work/POD.yaml, in the background; what it prints is in $work/POD.out.
run() {
    local manifest=$MANIFESTS/$1.yaml
    [ -e "$manifest" ] || manifest=$work/$1.yaml
    "$PODWRIGHT" run "$manifest" >"$work/$1.out" 2>&1 &
    running=$!
}

# ends WHAT CODE: waits for what run started.
ends() {
    local status=0
    wait "$running" || status=$?
    running=
    is "$1, exit code" "$status" "$2"
}

# pod NAME: the directory with its records.
pod() {
    local directory
    for directory in "$PODWRIGHT_STATE"/run/*/pods/*; do
        if grep -q "\"config\":{\"name\":\"$1\"" "$directory/pod.json" 2>/dev/null; then
            echo "$directory" && return
        fi
    done
    return 1
}

# container POD NAME ATTEMPT: the same.
container() {
    local directory
    for directory in "$(pod "$1")"/containers/*; do
        if grep -q "\"config\":{\"name\":\"$2\",\"attempt\":$3," "$directory/config.json" 2>/dev/null; then
            echo "$directory" && return
        fi
    done
    return 1
}

# value FILE KEY: a number of a record.
value() { sed -n "s/.*\"$2\":\(-\{0,1\}[0-9][0-9]*\).*/\1/p" "$1"; }

# number KEY FILE: of what `-o json` prints.
number() { sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}$/\1/p" "$2"; }

# started POD NAME ATTEMPT
started() {
    local directory
    directory=$(container "$@") && [ -e "$directory/process.json" ]
}

pid_of() { value "$(container "$@")/process.json" pid; }
cgroup_of() { echo "$cgroups$(sed -n 's/^0:://p' "/proc/$(pid_of "$@")/cgroup")"; }
volume_of() { echo "$PODWRIGHT_ROOT/pods/$(basename "$(pod "$1")")/volumes/$2"; }
alive() { [ -e "/proc/$1/exe" ] && ! grep -q '^State:.Z' "/proc/$1/status"; }
dead() { ! alive "$1"; }

# --- this machine, to be compared

# world DIRECTORY: a file for each kind of thing that podwright makes.
world() {
    mkdir -p "$1"
    mounts >"$1/mounts"
    find "$cgroups" -type d | grep -F "$(here)" | sort >"$1/cgroups"
    processes >"$1/processes"
    ls /sys/class/net >"$1/links"
    [ "$WHOLE" != yes ] || namespaces >"$1/namespaces"
    # A tmpfs and an ext4 alike: what is there, and how much of it.
    find "$PODWRIGHT_ROOT" "$PODWRIGHT_STATE" 2>/dev/null | sort >"$1/files"
    du -sk "$PODWRIGHT_ROOT" "$PODWRIGHT_STATE" 2>/dev/null >"$1/du"
}

here() { if [ "$WHOLE" = yes ]; then echo /; else echo "$PODWRIGHT_CGROUP_ROOT"; fi; }

# The mounts of every mount namespace that a process is in; of this one alone where others work on the machine.
mounts() {
    local process namespace seen=' '
    if [ "$WHOLE" != yes ]; then
        grep -F "$work" /proc/self/mountinfo
        return
    fi
    for process in /proc/[0-9]*; do
        namespace=$(readlink "$process/ns/mnt") || continue
        case $seen in *" $namespace "*) continue ;; esac
        seen="$seen$namespace "
        echo "$namespace"
        sort "$process/mountinfo"
    done 2>/dev/null
}

# Processes that are not the kernel's, nor of this script; where others work on the machine, those of our pods and shims.
processes() {
    local stat pid command parent _
    for stat in /proc/[0-9]*/stat; do
        read -r pid command _ parent _ <"$stat" || continue
        if [ "$pid" = 2 ] || [ "$parent" = 2 ] || [ "$pid" = $$ ] || [ "$parent" = $$ ]; then
            continue
        fi
        if [ "$WHOLE" = yes ] || grep -qF "$PODWRIGHT_CGROUP_ROOT" "/proc/$pid/cgroup" || grep -qF "$work" "/proc/$pid/cmdline"; then
            echo "$pid $command"
        fi
    done 2>/dev/null
}

namespaces() {
    local kinds='cgroup|ipc|mnt|net|pid|time|user|uts' namespace descriptor
    for namespace in /proc/[0-9]*/ns/*; do readlink "$namespace"; done 2>/dev/null | sort -u
    # Those that only a descriptor keeps.
    for descriptor in /proc/[0-9]*/fd/*; do readlink "$descriptor"; done 2>/dev/null | grep -E "^($kinds):" | sort -u
}

# as_before WHAT: compares the machine with what it was before the first pod.
as_before() {
    local kind kinds='mounts cgroups processes links files du'
    [ "$WHOLE" != yes ] || kinds="$kinds namespaces"
    world "$work/after"
    for kind in $kinds; do
        if cmp -s "$work/before/$kind" "$work/after/$kind"; then
            ok "$1: $kind as before ($(wc -l <"$work/after/$kind"))"
        else
            bad "$1: $kind differ:"
            diff "$work/before/$kind" "$work/after/$kind" | show
        fi
    done
}

# The kernel's own account of every program that is executed and every cgroup that is made.
trace_on() {
    [ "$WHOLE" = yes ] || return 0
    echo >"$tracing/trace"
    echo 1 >"$tracing/events/sched/sched_process_exec/enable"
    echo 1 >"$tracing/events/cgroup/cgroup_mkdir/enable"
}
executed() { grep -c "sched_process_exec: filename=$1 " "$tracing/trace"; }
# The cgroups of containers: those below a pod's, less the one of its pause process.
containers_made() { echo $(($(grep -c "cgroup_mkdir: .*path=$PODWRIGHT_CGROUP_ROOT/.*/pod[^/]*/[^/]*$" "$tracing/trace") - 1)); }

# --- the story

prepare() {
    part "images, imported from OCI layouts made of Debian's packages"
    local image
    for image in busybox nginx app log-aggregator; do
        holds "import $image" "$PODWRIGHT" import "$IMAGES/$image"
    done
    "$PODWRIGHT" images | show
    [ "$WHOLE" != yes ] || [ -e "$tracing/events" ] || mount -t tracefs tracefs "$tracing"
    world "$work/before"
}

the_documented_example() {
    part "Kubernetes' documentation example: two containers, requests 250m/64Mi, limits 500m/128Mi"
    run frontend
    awaits "app runs" started frontend app 0
    awaits "log-aggregator runs" started frontend log-aggregator 0
    "$PODWRIGHT" ps | show
    [ "$WHOLE" != yes ] || holds "no mount on the host" cmp "$work/before/mounts.host" /proc/self/mountinfo
    local app neighbour
    app=$(pid_of frontend app 0) neighbour=$(pid_of frontend log-aggregator 0)
    if [ "$LIMITS" = yes ]; then
        limits_in_the_kernel
        half_a_processor
        out_of_memory "$app" "$neighbour"
    fi
    part "SIGKILL from outside is an error, and not out of memory"
    kill -KILL "$app"
    awaits "app: 137, Error" grep -q 'container app ended with 137 (Error)' "$work/frontend.out"
    awaits "and restarted, as restartPolicy Always says" started frontend app 1
    kill -TERM "$running"
    ends "run ends when asked" 0
    show "$work/frontend.out"
}

limits_in_the_kernel() {
    part "asked, written, in the kernel, and effective below all that is above it"
    local app pod
    app=$(cgroup_of frontend app 0) pod=$(dirname "$(cgroup_of frontend app 0)")
    "$PODWRIGHT" inspect frontend/app >"$work/inspect"
    sed -n '/^ *FILE /,/^ *memory.oom/p' "$work/inspect" | show
    row cpu.max 500m "50000 100000" "50000 100000" "50000 100000"
    row memory.max 128Mi $memory_limit $memory_limit $memory_limit
    row memory.swap.max 0 0 0 0
    is "cpu.max in app's cgroup" "$(cat "$app/cpu.max")" "50000 100000"
    is "memory.max there" "$(cat "$app/memory.max")" $memory_limit
    is "memory.swap.max there" "$(cat "$app/memory.swap.max")" 0
    is "memory.oom.group there" "$(cat "$app/memory.oom.group")" 1
    is "cpu.max in the pod's cgroup" "$(cat "$pod/cpu.max")" "100000 100000"
    is "memory.max there" "$(cat "$pod/memory.max")" $((2 * memory_limit))
    holds "podwright verify finds all as planned" "$PODWRIGHT" verify frontend
    "$PODWRIGHT" verify frontend 2>&1 | tail -n 1 | show
}

# row FILE COLUMN...: the table's row is exactly this.
row() {
    local file=$1 line
    line=$(sed -n "s/^ *$file  *//p" "$work/inspect" | tr -s ' ')
    shift
    is "$file" "$line" "$* yes"
}

# cpu FILE KEY: sets $got, without making a process, and $now to hundredths of a second.
cpu() {
    local key value whole
    while read -r key value; do
        [ "$key" != "$2" ] || got=$value
    done <"$1"
    read -r whole _ </proc/uptime
    now=${whole%.*}${whole#*.}
}

half_a_processor() {
    part "a busy loop under 500m, watched for $measured_s s"
    local stat used from throttled
    stat=$(cgroup_of frontend app 0)/cpu.stat
    cpu "$stat" nr_throttled && throttled=$got
    cpu "$stat" usage_usec && used=$got from=$now
    sleep "$measured_s"
    cpu "$stat" usage_usec
    between "usage_usec over elapsed time, in thousandths" $(((got - used) / (now - from) / 10)) 475 525
    cpu "$stat" nr_throttled
    between "periods in which it was throttled" $((got - throttled)) 1 $((measured_s * 11))
    "$PODWRIGHT" stats frontend | show
    "$PODWRIGHT" -o json stats frontend/app >"$work/stats"
    between "podwright stats has at least as many" "$(number throttledPeriods "$work/stats")" "$got" 99999999
    between "and as much use, in microseconds" "$(number usageUs "$work/stats")" "$used" 999999999999
}

# out_of_memory APP NEIGHBOUR
out_of_memory() {
    part "a process over 128Mi"
    kill -USR1 "$2"
    awaits "log-aggregator: 137, OOMKilled" grep -q 'container log-aggregator ended with 137 (OOMKilled)' "$work/frontend.out"
    holds "its neighbour lives" alive "$1"
    is "and is the same process" "$(pid_of frontend app 0)" "$1"
    awaits "and it is restarted, as restartPolicy Always says" started frontend log-aggregator 1
}

the_web_pod() {
    part "an nginx web pod: two init containers, then two that wait for each other"
    trace_on
    run web
    awaits "nginx and client meet at the FIFOs, and the page is served on the pod's localhost" \
        grep -q 'client.*hello from web' "$work/web.out"
    disjoint make-page check-page
    disjoint check-page nginx
    disjoint check-page client
    # shellcheck disable=SC2016 # for the bash in the container
    is "the page, by podwright exec in the nginx container" "$("$PODWRIGHT" exec web/nginx -- bash -c '
        exec 3<>/dev/tcp/127.0.0.1/80; printf "GET / HTTP/1.0\r\n\r\n" >&3; tail -n 1 <&3')" "hello from web"
    never "the host's own localhost does not serve it" wget -qO- -T 2 http://127.0.0.1/
    holds "make-page's work is in the emptyDir" test -s "$(volume_of web work)/index.html"
    if [ "$WHOLE" = yes ]; then
        is "containers that the kernel saw made" "$(containers_made)" 4
        between "executions of nginx that it saw" "$(executed /usr/sbin/nginx)" 1 1
    fi
    kill -TERM "$running"
    ends "run ends when asked, by SIGQUIT for nginx" 0
    show "$work/web.out"
}

# disjoint FIRST SECOND: by podwright's records, in nanoseconds.
disjoint() {
    local end begin
    end=$(value "$(container web "$1" 0)/exit.json" finished_at_ns)
    begin=$(value "$(container web "$2" 0)/process.json" started_at_ns)
    if [ "${end:-0}" -gt 0 ] && [ "$end" -lt "${begin:-0}" ]; then
        ok "$1 ended $(((begin - end) / 1000)) us before $2 began"
    else
        bad "$1 ended at ${end:-?}, $2 began at ${begin:-?}"
    fi
}

an_init_container_that_fails() {
    part "the same pod, its first init container fails: nothing after it ever existed"
    sed -e 's/^  name: web$/  name: broken/' -e 's/echo done > .*/exit 3/' "$MANIFESTS/web.yaml" >"$work/broken.yaml"
    trace_on
    run broken
    ends "run ends by itself" 3
    never_an_app make-page 3 1
    part "its first leaves no mark: the second fails, and no app ever existed"
    sed -e 's/^  name: web$/  name: unmarked/' -e 's/echo done > .*/true/' "$MANIFESTS/web.yaml" >"$work/unmarked.yaml"
    trace_on
    run unmarked
    ends "run ends by itself" 1
    never_an_app check-page 1 2
}

# never_an_app CULPRIT CODE CONTAINERS
never_an_app() {
    local out=$work/broken.out
    [ "$1" = make-page ] || out=$work/unmarked.out
    holds "$1 is named" grep -q "container $1 ended with $2 (Error)" "$out"
    # Other lines may be there: a warning that the guest has no apparmor_parser is.
    never "nothing else ended" awk -v ours="container $1 ended" \
        '/container .* ended/ && !index($0, ours) { found = 1 } END { exit !found }' "$out"
    if [ "$WHOLE" = yes ]; then
        is "containers that the kernel saw made" "$(containers_made)" "$3"
        is "executions of nginx that it saw" "$(executed /usr/sbin/nginx)" 0
    fi
    show "$out"
}

a_child_out_of_memory() {
    part "a child runs out of memory, its parent exits 0: seen all the same"
    run child-oom
    ends "run ends by itself" 0
    holds "the child was killed" grep -q 'the child ended with 137' "$work/child-oom.out"
    holds "parent: 0, OOMKilled" grep -q 'container parent ended with 0 (OOMKilled)' "$work/child-oom.out"
    show "$work/child-oom.out"
}

zombies() { grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; }
no_zombie() { [ "$(zombies)" = 0 ]; }

ten_thousand_orphans() {
    part "10,000 orphans in a pod with one pid namespace"
    run orphans
    awaits "the container runs" started orphans parent 0
    local pause fifo before
    pause=$(value "$(pod orphans)/sandbox.json" pid)
    fifo=$(volume_of orphans work)
    awaits "and waits" test -p "$fifo/go"
    is "the pid namespace is the pause process's" \
        "$(readlink "/proc/$(pid_of orphans parent 0)/ns/pid")" "$(readlink "/proc/$pause/ns/pid")"
    before=$(tasks orphans)
    is "processes in the pod's cgroup, pause included" "$before" 2
    echo go >"$fifo/go"
    awaits "all of them were made" test -s "$fifo/last-pid"
    is "orphans that lived" "$(wc -l <"$fifo/orphans")" 10000
    between "process ids that the namespace has used" "$(cat "$fifo/last-pid")" 20000 99999999
    await reaped "$before"
    is "processes in the pod's cgroup afterwards" "$(tasks orphans)" "$before"
    is "zombies on this machine" "$(zombies)" 0
    echo end >"$fifo/go"
    ends "run ends by itself" 0
}

# tasks POD: from its cgroup, and from its members' on a host without the pids controller.
tasks() {
    local directory
    directory=$(dirname "$(cgroup_of "$1" parent 0)")
    cat "$directory/pids.current" 2>/dev/null || cat "$directory"/*/cgroup.procs | wc -l
}
reaped() { [ "$(tasks orphans)" = "$1" ] && no_zombie; }

nobody_left() { processes | cmp -s - "$work/before/processes"; }

nothing_left() {
    part "afterwards"
    await nobody_left
    as_before "after all pods"
    holds "the images can go" "$PODWRIGHT" rmi busybox nginx "$example/app:v4" "$example/log-aggregator:v6"
    is "layers left" "$(find "$PODWRIGHT_ROOT/images/layers" -mindepth 1 -maxdepth 1 | wc -l)" 0
}

clean_up() {
    [ -z "$running" ] || { kill -TERM "$running" && wait "$running"; }
    rm -rf "$work"
}

trap clean_up EXIT
trap 'exit 130' INT TERM
prepare
cat /proc/self/mountinfo >"$work/before/mounts.host"
the_documented_example
the_web_pod
an_init_container_that_fails
[ "$LIMITS" != yes ] || a_child_out_of_memory
ten_thousand_orphans
nothing_left
printf '\n%s checks, %s failed\n' $((passed + failed)) "$failed"
[ "$failed" = 0 ]
