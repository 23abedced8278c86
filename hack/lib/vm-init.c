/*
 * PID 1 of the machine that hack/vm boots.
 *
 * It brings up what a node's init would have, runs one command, and powers off. It is C and static because a process
 * under software emulation costs ten times what it costs natively: a shell script doing the same adds a second to
 * every boot. It has no dependency but the compiler that a Rust toolchain needs anyway.
 *
 * Taken from the initramfs (hack/vm packs it):
 *   /job/argv       the command, each argument ended by a NUL
 *   /job/get        paths to hand back, each ended by a NUL
 *   /job/early      modules needed to reach the disk, in load order, one path a line below /lib/modules/RELEASE
 *   /job/late       the other modules to load at boot, read from the disk's /lib/modules/RELEASE
 * Disks: vda is the root; vdb, when there, holds files to copy over the root (--add onto a kept disk).
 * Ports of virtio-serial, raw bytes, so that nothing of the kernel's log is mixed in:
 *   vport0p1 out    what the command writes to stdout and stderr
 *   vport0p2 ctl    "start\n" before the command runs, "exit N\n" when its effects are on the disk
 *   vport0p3 get    a tar of the paths in /job/get
 *
 * With "systemd" on the kernel's command line PID 1 becomes systemd once the machine is up, and a copy of this program
 * is the service in which the command runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_WAIT_MS 20000 /* a loaded host takes seconds to bring virtio up */
#define JOB_MAX (1 << 20)    /* bytes of argv, or of paths to get */
#define ARGS_MAX 4096

/* The console is the kernel's log, which hack/vm shows when no exit status arrives. */
static void die(const char *format, ...)
{
	char why[512];
	va_list args;
	int error = errno;

	va_start(args, format);
	vsnprintf(why, sizeof why, format, args);
	va_end(args);
	dprintf(2, "vm-init: %s: %s\n", why, strerror(error));
	sync();
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void mount_at(const char *target, const char *type, unsigned long flags, const char *options)
{
	if (mkdir(target, 0755) && errno != EEXIST)
		die("mkdir %s", target);
	if (mount(type, target, type, flags, options) && errno != EBUSY)
		die("mount %s on %s", type, target);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("write %s", path);
	close(fd);
}

static void write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("write to the host");
		data += n;
		size -= (size_t)n;
	}
}

static char *read_job(const char *path, size_t *size)
{
	char *data = malloc(JOB_MAX + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	*size = 0;
	if (fd < 0 || !data)
		die("open %s", path);
	while ((n = read(fd, data + *size, JOB_MAX - *size)) > 0)
		*size += (size_t)n;
	if (n < 0 || *size == JOB_MAX)
		die("read %s (at most %d bytes)", path, JOB_MAX);
	data[*size] = '\0';
	close(fd);
	return data;
}

/* Splits NUL-ended strings in place, after what is already in argv. */
static void split(char *data, size_t size, char **argv, int count)
{
	for (char *end = data + size; data < end; data += strlen(data) + 1) {
		if (count == ARGS_MAX - 1) {
			errno = E2BIG;
			die("split the job");
		}
		argv[count++] = data;
	}
	argv[count] = NULL;
}

/* Loads the modules of a list, one path a line. */
static void load_modules(char *list)
{
	struct utsname system;
	char *save;

	uname(&system);
	for (char *name = strtok_r(list, "\n", &save); name; name = strtok_r(NULL, "\n", &save)) {
		char path[512];
		int fd;

		snprintf(path, sizeof path, "/lib/modules/%s/%s", system.release, name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			die("open %s", path);
		if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
			die("load %s", path);
		close(fd);
	}
}

/* Devices appear some time after their driver is loaded, and the initramfs has nobody who would tell. */
static int open_device(const char *path, int flags)
{
	struct timespec tick = { .tv_nsec = 2000000 };

	for (int waited_ms = 0;; waited_ms += 2) {
		int fd = open(path, flags | O_CLOEXEC);

		if (fd >= 0)
			return fd;
		if (waited_ms >= DEVICE_WAIT_MS || (errno != ENOENT && errno != ENXIO))
			die("open %s", path);
		nanosleep(&tick, NULL);
	}
}

static void enter_root(void)
{
	static const char *const moved[] = { "/dev", "/proc", "/sys" };

	close(open_device("/dev/vda", O_RDONLY));
	mkdir("/root", 0700);
	if (mount("/dev/vda", "/root", "ext4", MS_NOATIME, ""))
		die("mount /dev/vda");
	for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
		char target[64];

		snprintf(target, sizeof target, "/root%s", moved[i]);
		if (mount(moved[i], target, NULL, MS_MOVE, NULL))
			die("move %s", moved[i]);
	}
	/* The initramfs cannot be left by pivot_root; this is what every switch_root does. */
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("switch to the disk's root");
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		die("find lo");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		die("bring lo up");
	close(fd);
}

/* What systemd gives every service of a node, so that nothing passes here and fails there. */
static void be_like_a_node(void)
{
	struct rlimit files = { .rlim_cur = 1024, .rlim_max = 524288 };

	mount_at("/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate,memory_recursiveprot");
	mount_at("/sys/fs/bpf", "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700");
	mount_at("/sys/kernel/security", "securityfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_at("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666");
	mount_at("/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_at("/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL))
		die("make / shared");
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
		die("link /dev/fd");
	if (setrlimit(RLIMIT_NOFILE, &files))
		die("raise the limit of open files");
	put("/proc/sys/kernel/pid_max", "4194304");
	sethostname("vm", 2);
	loopback_up();
}

/* Starts argv with the given stdout and stderr; the child gets no other descriptor (all are close-on-exec). */
static pid_t start(char **argv, int out, int err)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		dup2(null, 0);
		dup2(out, 1);
		dup2(err, 2);
		execvp(argv[0], argv);
		dprintf(2, "hack/vm: %s: %s\n", argv[0], strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	return pid;
}

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int run_helper(char **argv, int out)
{
	int status;
	pid_t pid = start(argv, out, 2);

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("wait for %s", argv[0]);
	return exit_code(status);
}

static void copy_added_files(void)
{
	/* tar replaces links; busybox's cp writes through them, and most of /bin is links to busybox. */
	static char script[] = "set -o pipefail; tar -c -C /run/added . | tar -x -C /";
	char *copy[] = { "sh", "-c", script, NULL };

	if (access("/dev/vdb", F_OK))
		return;
	mkdir("/run/added", 0700);
	if (mount("/dev/vdb", "/run/added", "ext4", MS_RDONLY, ""))
		die("mount /dev/vdb");
	if (run_helper(copy, 2))
		die("copy the added files");
	if (umount("/run/added") || rmdir("/run/added"))
		die("unmount /dev/vdb");
}

/*
 * Runs the command, copies its output to the host and reaps what is orphaned, until the command itself has ended.
 * Then nobody else may go on: everything is killed, and the rest of the output follows, up to its end of file.
 * The command gets a pipe and not the port itself, which could not be opened again through /dev/stdout.
 */
static int run_command(char **argv, int out, int ctl)
{
	static char buffer[1 << 16];
	sigset_t child;
	int status = 0, output[2], signals;
	pid_t pid;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0 || pipe2(output, O_CLOEXEC))
		die("make a pipe");
	write_all(ctl, "start\n", 6);
	pid = start(argv, output[1], output[1]);
	close(output[1]);

	for (int running = 1, open = 1; running || open;) {
		struct pollfd fds[] = { { open ? output[0] : -1, POLLIN, 0 }, { running ? signals : -1, POLLIN, 0 } };

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (fds[0].revents) {
			ssize_t n = read(output[0], buffer, sizeof buffer);

			if (n > 0)
				write_all(out, buffer, (size_t)n);
			open = n > 0;
		}
		if (fds[1].revents) {
			struct signalfd_siginfo ignored;
			int one;
			pid_t reaped;

			while (read(signals, &ignored, sizeof ignored) > 0)
				;
			while ((reaped = waitpid(-1, &one, WNOHANG)) > 0)
				if (reaped == pid) {
					running = 0;
					status = one;
				}
			if (!running)
				kill(-1, SIGKILL);
		}
	}
	while (wait(NULL) > 0 || errno == EINTR)
		;
	close(signals);
	close(output[0]);
	return exit_code(status);
}

static void hand_back(char *paths, size_t size)
{
	static char *tar[ARGS_MAX] = { "tar", "-c", "-f", "-", "-C", "/" };

	if (size == 0)
		return;
	split(paths, size, tar, 6);
	run_helper(tar, open_device("/dev/vport0p3", O_WRONLY)); /* what is missing from it is seen by hack/vm */
}

static void write_file(const char *path, const char *data, size_t size, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

	if (fd < 0)
		die("make %s", path);
	write_all(fd, data, size);
	close(fd);
}

/* The initramfs is out of reach from here on: what is needed of it goes to /run. */
static void become_systemd(const char *command, size_t command_size, const char *get, size_t get_size)
{
	static const char unit[] =
		"[Unit]\nDescription=the command of hack/vm\nDefaultDependencies=no\n"
		"[Service]\nExecStart=/run/vm/init\nStandardError=tty\nDelegate=yes\nTasksMax=infinity\n"
		"LimitNOFILE=1024:524288\n";
	static char *const systemd[] = { "/usr/lib/systemd/systemd", "--unit=vm-command.service", NULL };
	static char program[4 << 20];
	int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	ssize_t n, size = 0;

	if (self < 0)
		die("open /proc/self/exe");
	while ((n = read(self, program + size, sizeof program - (size_t)size)) > 0)
		size += n;
	if (n < 0 || size == sizeof program)
		die("read /proc/self/exe");
	close(self);
	mkdir("/run/vm", 0700);
	mkdir("/run/systemd", 0755);
	mkdir("/run/systemd/system", 0755);
	write_file("/run/vm/init", program, (size_t)size, 0755);
	write_file("/run/vm/argv", command, command_size, 0600);
	write_file("/run/vm/get", get, get_size, 0600);
	write_file("/run/systemd/system/vm-command.service", unit, sizeof unit - 1, 0644);
	execv(systemd[0], systemd);
	die("execute %s", systemd[0]);
}

/* Runs the command, hands back what was asked for, and ends the machine. */
static void serve(char *command, size_t command_size, char *get, size_t get_size)
{
	static char *argv[ARGS_MAX];
	char message[32];
	int out, ctl, code;

	split(command, command_size, argv, 0);
	out = open_device("/dev/vport0p1", O_WRONLY);
	ctl = open_device("/dev/vport0p2", O_WRONLY);
	code = run_command(argv, out, ctl);
	hand_back(get, get_size);
	sync();
	/* Clean if nothing of the command's holds it, such as a mount; otherwise the journal makes it so at the next boot. */
	(void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	snprintf(message, sizeof message, "exit %d\n", code);
	write_all(ctl, message, strlen(message));
	reboot(RB_AUTOBOOT); /* with QEMU's -no-reboot this ends the machine, and needs no ACPI */
}

int main(int argc, char **kernel_arguments)
{
	char *command, *get, *early, *late;
	size_t command_size, get_size, list_size;
	int systemd = 0;

	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "dumb", 1);
	if (getpid() != 1) { /* systemd's service */
		command = read_job("/run/vm/argv", &command_size);
		get = read_job("/run/vm/get", &get_size);
		serve(command, command_size, get, get_size);
		return 1;
	}

	mount_at("/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	mount_at("/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);

	/* What the kernel does not know of its command line comes here: hack/vm asks whether KVM boots at all. */
	for (int i = 1; i < argc; i++) {
		if (!strcmp(kernel_arguments[i], "probe")) {
			dprintf(2, "vm-init: up\n");
			reboot(RB_AUTOBOOT);
		}
		systemd |= !strcmp(kernel_arguments[i], "systemd");
	}

	command = read_job("/job/argv", &command_size);
	get = read_job("/job/get", &get_size);
	early = read_job("/job/early", &list_size);
	late = read_job("/job/late", &list_size);

	load_modules(early);
	enter_root();
	be_like_a_node();
	copy_added_files(); /* the modules too, when a kept disk meets another kernel */
	load_modules(late);
	if (systemd)
		become_systemd(command, command_size, get, get_size);
	serve(command, command_size, get, get_size);
	return 1;
}
