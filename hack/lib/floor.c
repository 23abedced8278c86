// The floor that hack/bench measures podwright against: the fewest system calls that make the same things, with no
// configuration, no records, no checks, no logs. One process, clone3 each time; the same kernel, in the same run.
//   floor LAYER DIR CGROUP N net|host    prints "verb microseconds" for each of N rounds
// sandbox: cgroup + pause in new namespaces; create: two mkdirs; start: cgroup, overlay, clone3, setns, /proc, pivot_root, exec;
// exec: clone3 + setns + exec of `true` until it has ended; stop: SIGKILL until reaped; remove: pause, cgroups, directories.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) { perror(what); _exit(1); }
static int ok(int r, const char *what) { if (r < 0) die(what); return r; }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static int clone3(uint64_t flags, int cgroup, int *pidfd) {
    struct clone_args a = {.flags = flags | CLONE_PIDFD | CLONE_INTO_CGROUP, .pidfd = (uintptr_t)pidfd, .exit_signal = SIGCHLD, .cgroup = cgroup};
    return syscall(SYS_clone3, &a, sizeof a);
}
static int newfs(const char *type, const char *const *options) {
    int fs = ok(syscall(SYS_fsopen, type, 1), "fsopen");
    for (; options && *options; options += 2) ok(syscall(SYS_fsconfig, fs, 1, options[0], options[1], 0), options[0]);
    ok(syscall(SYS_fsconfig, fs, 6, 0, 0, 0), type);
    int m = ok(syscall(SYS_fsmount, fs, 1, 0), "fsmount");
    close(fs);
    return m;
}
static void attach(int tree, int dir, const char *path) { ok(syscall(SYS_move_mount, tree, "", dir, path, 4), path); }
static int cgroup(const char *path) { ok(mkdir(path, 0755), path); return ok(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), path); }
static void wait_report(int fd) { char c; if (read(fd, &c, 1) > 0) exit(1); close(fd); }

static char L[512], D[512], C[512];
static int net;

static void pause_main(int report) {
    mount(0, "/", 0, MS_REC | MS_SLAVE, 0);
    if (net) {
        struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
        int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        ok(ioctl(s, SIOCSIFFLAGS, &lo), "lo up");
    }
    int t = newfs("tmpfs", (const char *[]){"size", "16k", "mode", "755", 0});
    attach(t, AT_FDCWD, "/proc/fs");
    for (const char **d = (const char *[]){"proc", "root", "shm", 0}; *d; d++) ok(mkdirat(t, *d, 0755), *d);
    attach(newfs("proc", 0), t, "proc");
    attach(newfs("tmpfs", (const char *[]){"size", "64m", 0}), t, "shm");
    ok(fchdir(t), "fchdir");
    ok(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ok(umount2(".", MNT_DETACH), "umount2");
    close(report);
    for (;;) pause();
}
static void container_main(int pausefd, int report) {
    char up[600], work[600];
    snprintf(up, sizeof up, "%s/up", D); snprintf(work, sizeof work, "%s/work", D);
    int root = newfs("overlay", (const char *[]){"lowerdir", L, "upperdir", up, "workdir", work, 0});
    ok(setns(pausefd, CLONE_NEWNS | CLONE_NEWIPC | (net ? CLONE_NEWNET | CLONE_NEWUTS : 0)), "setns");
    ok(unshare(CLONE_NEWNS), "unshare");
    attach(root, AT_FDCWD, "/root");
    mkdirat(root, "proc", 0755); mkdirat(root, "dev", 0755);
    attach(newfs("proc", 0), root, "proc");
    attach(newfs("tmpfs", 0), root, "dev");
    ok(fchdir(root), "fchdir");
    ok(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ok(umount2(".", MNT_DETACH), "umount2");
    ok(chdir("/"), "chdir");
    for (int i = 0; i < 6; i++) { char n[16]; snprintf(n, sizeof n, "/dev/n%d", i); mknod(n, S_IFCHR | 0666, 0x103); }
    dup2(open("/dev/n0", O_RDWR), 0);
    fcntl(report, F_SETFD, FD_CLOEXEC);
    execl("/bin/busybox", "busybox", "sleep", "1000", (char *)0);
    die("exec");
}
static double t0;
static void lap(const char *verb) { double t = now(); printf("%s %.1f\n", verb, t - t0); t0 = now(); }
static void round_trip(void) {
    char pod[600], leaf[700], ctr[700], ex[800], up[600], work[600];
    snprintf(pod, sizeof pod, "%s/p", C); snprintf(leaf, sizeof leaf, "%s/pause", pod);
    snprintf(ctr, sizeof ctr, "%s/c", pod); snprintf(ex, sizeof ex, "%s/exec-1", ctr);
    snprintf(up, sizeof up, "%s/up", D); snprintf(work, sizeof work, "%s/work", D);
    int r[2], pfd, cfd, xfd, st;
    t0 = now();
    close(cgroup(pod));
    int lfd = cgroup(leaf);
    ok(pipe2(r, O_CLOEXEC), "pipe");
    int p = ok(clone3(CLONE_NEWNS | CLONE_NEWIPC | (net ? CLONE_NEWNET | CLONE_NEWUTS : 0), lfd, &pfd), "clone3 pause");
    if (!p) { close(r[0]); pause_main(r[1]); }
    close(r[1]); wait_report(r[0]);
    lap("sandbox");
    ok(mkdir(up, 0755), up); ok(mkdir(work, 0755), work);
    lap("create");
    int gfd = cgroup(ctr);
    ok(pipe2(r, O_CLOEXEC), "pipe");
    int c = ok(clone3(CLONE_NEWPID | CLONE_NEWCGROUP, gfd, &cfd), "clone3 container");
    if (!c) { close(r[0]); container_main(pfd, r[1]); }
    close(r[1]); wait_report(r[0]);
    lap("start");
    int efd = cgroup(ex);
    int self = ok(open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC), "ns/pid");
    ok(setns(cfd, CLONE_NEWPID), "setns pid");
    int e = ok(clone3(0, efd, &xfd), "clone3 exec");
    if (!e) {
        ok(setns(cfd, CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWCGROUP | (net ? CLONE_NEWNET | CLONE_NEWUTS : 0)), "setns");
        execl("/bin/busybox", "busybox", "true", (char *)0);
        die("exec");
    }
    ok(setns(self, CLONE_NEWPID), "setns back");
    ok(waitpid(e, &st, 0), "waitpid");
    if (st) exit(1);
    close(efd); close(self); ok(rmdir(ex), ex);
    lap("exec");
    kill(c, SIGKILL); ok(waitpid(c, &st, 0), "waitpid");
    lap("stop");
    kill(p, SIGKILL); ok(waitpid(p, &st, 0), "waitpid");
    close(gfd); close(lfd); close(pfd); close(cfd); close(xfd);
    ok(rmdir(ctr), ctr); ok(rmdir(leaf), leaf); ok(rmdir(pod), pod);
    char cmd[700]; snprintf(cmd, sizeof cmd, "%s/work", work); rmdir(cmd); ok(rmdir(work), work);
    int u = open(up, O_RDONLY | O_DIRECTORY); unlinkat(u, "proc", AT_REMOVEDIR); unlinkat(u, "dev", AT_REMOVEDIR); close(u);
    ok(rmdir(up), up);
    lap("remove");
}
int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: floor LAYER DIR CGROUP N net|host\n"); return 2; }
    snprintf(L, sizeof L, "%s", argv[1]); snprintf(D, sizeof D, "%s", argv[2]); snprintf(C, sizeof C, "%s", argv[3]);
    net = !strcmp(argv[5], "net");
    for (int n = atoi(argv[4]); n > 0; n--) round_trip();
    return 0;
}
