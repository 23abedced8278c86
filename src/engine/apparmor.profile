# podwright's profile for containers that ask for none of their own: a second wall, beside capabilities, seccomp, masked and
# read-only paths. Loaded by podwright; it needs nothing of /etc/apparmor.d.
#
# A file may be anywhere: where a container's files are mounted is its own. What is denied are the files of the kernel that reach the
# host, whoever the container's root is and whatever it has mounted over them.
profile podwright-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Processes of the host may end and look at those of a container; those of a container only at one another.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=podwright-default,
  ptrace (readby,tracedby) peer=unconfined,
  ptrace (trace,read,tracedby,readby) peer=podwright-default,

  # In /proc no file may be written but those of processes, and of /proc/sys but kernel.shm*: what else a pod may set is set
  # before it starts.
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/mem rwklx,
  deny /proc/kmem rwklx,
  deny /proc/kcore rwklx,

  deny mount,

  # Of /sys only the container's own cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
