//! The seccomp filters in the kernel: each test installs one on a thread or a child of its own and makes real system calls, by all
//! three roads into an x86_64 kernel. What the filters say about every other call is tested without root beside the code.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // the point is system calls that no wrapper makes

use std::arch::asm;

use oci_spec::runtime::LinuxSeccomp;
use podwright::launch::seccomp::{Machine, Program, compile};
use podwright::launch::seccomp_profile::compile_default;
use podwright::sys::install_seccomp;

const EPERM: i64 = -1;
const ENOSYS: i64 = -38;
/// The capabilities of a container that asks for nothing.
const USUAL: u64 = 0xa804_25fb;
const X32_BIT: i64 = 0x4000_0000;

/// A system call; the number may have x32's bit.
fn call(number: i64, arguments: [u64; 4]) -> i64 {
    let [a, b, c, d] = arguments;
    let result: i64;
    // SAFETY: the callers below pass arguments with which the kernel writes nothing into this process, whatever the filter says.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A system call of the i386 table, as any 64-bit process can make it.
fn call_i386(number: i32, b: u32, c: u32) -> i64 {
    let result: i32;
    // SAFETY: as above. rbx belongs to the compiler and is put back.
    unsafe {
        asm!("xchg rbx, {b}", "int 0x80", "xchg rbx, {b}", b = inout(reg) u64::from(b) => _, inlateout("eax") number => result,
             in("ecx") c, in("edx") 0, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    i64::from(result)
}

/// Runs `calls` on a thread below the filter; other threads are not touched.
fn under<T: Send>(program: &Program, calls: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                install_seccomp(&program.code, program.flags).expect("install the filter: root is needed");
                calls()
            })
            .join()
            .expect("the thread")
    })
}

/// How a child ends that installs the filter and then runs `calls`: exit code or signal, as wait(2) has it.
fn child_under(program: &Program, calls: impl FnOnce()) -> i32 {
    // SAFETY: the child makes system calls and _exit only: no lock, no allocation.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let installed = install_seccomp(&program.code, program.flags).is_ok();
        if installed {
            calls();
        }
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if installed { 0 } else { 99 }) }
    }
    let mut status = 0;
    // SAFETY: `status` is ours and lives across the call.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(waited, pid);
    status
}

fn custom(json: serde_json::Value) -> Program {
    let profile: LinuxSeccomp = serde_json::from_value(json).expect("a profile");
    compile(&profile, Machine::HOST).expect("it compiles")
}

#[test]
fn the_default_profile_holds_on_the_road_of_x86_64() {
    let program = compile_default(USUAL).expect("it compiles");
    under(&program, || {
        assert_eq!(call(libc::SYS_getpid, [0; 4]), i64::from(std::process::id()));
        for (what, number, arguments) in [
            ("keyctl", libc::SYS_keyctl, [0; 4]),
            ("add_key", libc::SYS_add_key, [0; 4]),
            ("bpf", libc::SYS_bpf, [99, 0, 0, 0]),
            ("mount", libc::SYS_mount, [0; 4]),
            ("umount2", libc::SYS_umount2, [0; 4]),
            ("kexec_load", libc::SYS_kexec_load, [0; 4]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
            ("userfaultfd", libc::SYS_userfaultfd, [!0, 0, 0, 0]),
            ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
            ("unshare", libc::SYS_unshare, [0x1000_0000, 0, 0, 0]),
            ("clone(CLONE_NEWUSER)", libc::SYS_clone, [0x1000_0000, 0, 0, 0]),
            ("socket(AF_ALG)", libc::SYS_socket, [38, 5, 0, 0]),
            ("socket(AF_ALG), bit 32 set", libc::SYS_socket, [1 << 32 | 38, 5, 0, 0]),
            ("socket(AF_VSOCK)", libc::SYS_socket, [40, 1, 0, 0]),
            ("personality(ADDR_NO_RANDOMIZE)", libc::SYS_personality, [0x4_0000, 0, 0, 0]),
        ] {
            assert_eq!(call(number, arguments), EPERM, "{what}");
        }
        assert_eq!(call(libc::SYS_clone3, [0; 4]), ENOSYS);
        assert_eq!(call(470, [0; 4]), ENOSYS, "a call newer than the profile");
        assert_eq!(call(-1, [0; 4]), ENOSYS);
        let socket = call(libc::SYS_socket, [2, 1, 0, 0]);
        assert!(socket >= 0, "socket(AF_INET): {socket}");
        assert_eq!(call(libc::SYS_close, [socket.unsigned_abs(), 0, 0, 0]), 0);
        assert!(std::process::Command::new("/bin/true").status().expect("fork and exec work").success());
    });
}

#[test]
fn the_default_profile_holds_on_the_road_of_i386() {
    let program = compile_default(USUAL).expect("it compiles");
    under(&program, || {
        assert_eq!(call_i386(20, 0, 0), i64::from(std::process::id()), "getpid");
        for (what, number, first) in [
            ("keyctl", 288, 0),
            ("add_key", 286, 0),
            ("bpf", 357, 99),
            ("mount", 21, 0),
            ("unshare", 310, 0x1000_0000),
            ("clone(CLONE_NEWUSER)", 120, 0x1000_0000),
            ("io_uring_setup", 425, 0),
            ("socket(AF_ALG)", 359, 38),
            ("socket(AF_VSOCK)", 359, 40),
        ] {
            assert_eq!(call_i386(number, first, 0), EPERM, "{what}");
        }
        assert_eq!(call_i386(102, 1, 0), ENOSYS, "socketcall(SYS_SOCKET)");
        assert_eq!(call_i386(102, 2, 0), -14, "socketcall(SYS_BIND) is made: EFAULT for its arguments at 0");
        assert_eq!(call_i386(435, 0, 0), ENOSYS, "clone3");
        assert_eq!(call_i386(470, 0, 0), ENOSYS);
    });
}

#[test]
fn the_default_profile_holds_on_the_road_of_x32() {
    let program = compile_default(USUAL).expect("it compiles");
    under(&program, || {
        // A kernel without x32 has ENOSYS for these; EPERM is then the filter's.
        for number in [libc::SYS_keyctl, libc::SYS_mount, libc::SYS_bpf, 528] {
            assert_eq!(call(X32_BIT | number, [0; 4]), EPERM, "{number}");
        }
        assert_eq!(call(X32_BIT | libc::SYS_socket, [38, 5, 0, 0]), EPERM);
        assert_eq!(call(X32_BIT | 470, [0; 4]), ENOSYS);
        let pid = call(X32_BIT | libc::SYS_getpid, [0; 4]);
        assert!(pid == ENOSYS || pid == i64::from(std::process::id()), "{pid}");
    });
}

#[test]
fn capabilities_open_what_they_are_for() {
    let program = compile_default(1 << 21 | 1 << 39).expect("it compiles");
    under(&program, || {
        assert_eq!(call(libc::SYS_bpf, [99, 0, 0, 0]), -22, "bpf is made: EINVAL for its command");
        assert_eq!(call(libc::SYS_clone3, [0; 4]), -22, "clone3 is made: EINVAL for its size");
        assert_eq!(call(libc::SYS_keyctl, [0; 4]), EPERM);
    });
}

#[test]
fn each_rule_has_its_own_errno_and_arguments() {
    let program = custom(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 110 },
        { "names": ["dup3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 16, "args": [
            { "index": 0, "value": 7, "op": "SCMP_CMP_GE" },
            { "index": 2, "value": 0xff00, "valueTwo": 0x4200, "op": "SCMP_CMP_MASKED_EQ" },
        ]},
    ]}));
    under(&program, || {
        assert_eq!(call(libc::SYS_mkdir, [0; 4]), -110);
        assert_eq!(call(libc::SYS_dup3, [!0, 1, 0x42ff, 0]), -16);
        assert_eq!(call(libc::SYS_dup3, [6, 6, 0x42ff, 0]), -22, "the first argument differs: EINVAL of the kernel");
        assert_eq!(call(libc::SYS_dup3, [!0, 1, 0x43ff, 0]), -22, "the third one does");
    });
}

#[test]
fn an_architecture_that_is_not_listed_kills_the_process() {
    let program =
        custom(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"] }));
    let i386 = child_under(&program, || {
        call_i386(20, 0, 0);
    });
    assert!(libc::WIFSIGNALED(i386) && libc::WTERMSIG(i386) == libc::SIGSYS, "status {i386:#x}");
    let x32 = child_under(&program, || {
        call(X32_BIT | libc::SYS_getpid, [0; 4]);
    });
    assert!(libc::WIFSIGNALED(x32) && libc::WTERMSIG(x32) == libc::SIGSYS, "status {x32:#x}");
    assert_eq!(child_under(&program, || ()), 0);
}

#[test]
fn the_longest_profile_is_taken_by_the_kernel() {
    let args = |i: u64| serde_json::json!([{ "index": 1, "value": i << 33 | i, "op": "SCMP_CMP_GT" }]);
    let rules: Vec<_> = (0..680)
        .map(|i| serde_json::json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "args": args(i) }))
        .collect();
    let program = custom(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules }));
    assert!((4000..=4096).contains(&program.code.len()), "{} instructions", program.code.len());
    under(&program, || assert_eq!(call(libc::SYS_mkdir, [0, 1, 0, 0]), -2));
}
