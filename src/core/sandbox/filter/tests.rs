//! The programs are run by an interpreter here, over every number; then for real, in processes of their own.

use caps::Capability;
use proptest::prelude::*;

use super::*;
use crate::core::config::{Baseline, Protected};

/// `struct seccomp_data` as the kernel lays it out for this target.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn new(number: libc::c_long, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Self {
            number: u32::try_from(number).unwrap(),
            arch: assemble::ARCHITECTURE.unwrap(),
            arguments: all,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.number.to_ne_bytes());
        bytes.extend(self.arch.to_ne_bytes());
        bytes.extend(0_u64.to_ne_bytes());
        for argument in self.arguments {
            bytes.extend(argument.to_ne_bytes());
        }
        bytes
    }
}

/// Runs a program as the kernel does; panics on what the kernel would not load.
fn run(program: &Program, call: Call) -> u32 {
    let data = call.bytes();
    let (mut at, mut a) = (0_usize, 0_u32);
    for _ in 0..=program.0.len() {
        let op = program.0[at];
        at += 1;
        let (jt, jf) = (usize::from(op.jt), usize::from(op.jf));
        match op.code {
            0x20 => {
                let offset = usize::try_from(op.k).unwrap();
                assert_eq!(offset % 4, 0);
                a = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x05 => at += usize::try_from(op.k).unwrap(),
            0x15 => at += if a == op.k { jt } else { jf },
            0x35 => at += if a >= op.k { jt } else { jf },
            0x45 => at += if a & op.k != 0 { jt } else { jf },
            0x06 => return op.k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
    panic!("no return");
}

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;

fn profile(syscalls: Syscalls, userns: bool, caps: &[Capability]) -> ProfileConfig {
    ProfileConfig {
        syscalls: Protected::required(syscalls),
        deny_userns: Protected::required(userns),
        caps: caps.to_vec(),
        ..ProfileConfig::new(Baseline::Compat)
    }
}

fn features() -> Features {
    Features {
        seccomp: Ok(()),
        seccomp_kill_process: true,
        net_namespace: Ok(()),
        ..Features::unprivileged()
    }
}

fn build(profile: &ProfileConfig) -> Program {
    let mut report = Protections::default();
    program(profile, &features(), &mut report).unwrap().unwrap()
}

fn list(syscalls: Syscalls) -> Program {
    build(&profile(syscalls, false, &[]))
}

fn says(program: &Program, number: libc::c_long, arguments: &[u64]) -> u32 {
    run(program, Call::new(number, arguments))
}

#[test]
fn the_program_says_what_the_table_says_for_every_number() {
    let all = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];
    for list in [Syscalls::Off, Syscalls::Default, Syscalls::Strict] {
        for caps in [&all[..0], &all[..1], &all[..]] {
            for (userns, deny_inet) in [(true, false), (true, true), (false, true)] {
                let profile = profile(list, userns, caps);
                let table = rules::table(&profile, deny_inet);
                let architecture = assemble::ARCHITECTURE.unwrap();
                let program = Program(assemble::assemble(&table, architecture, true));
                assert!(program.0.len() < seccomp::MAX_INSTRUCTIONS);
                let top = if cfg!(target_arch = "x86_64") {
                    0x3fff_ffff
                } else {
                    u32::MAX
                };
                for number in (0..6000).chain([0xffff, 0x000f_0002, top]) {
                    let call = Call {
                        number,
                        ..Call::new(0, &[])
                    };
                    let wanted = expected(&table, call);
                    assert_eq!(run(&program, call), wanted, "{list:?} {number}");
                }
            }
        }
    }
}

/// The table read directly, without any code generation.
fn expected(table: &rules::Table, call: Call) -> u32 {
    fn word(verdict: &rules::Verdict, call: Call) -> u32 {
        match verdict {
            rules::Verdict::Allow => ALLOW,
            rules::Verdict::Errno(errno) => 0x0005_0000 | u32::from(*errno),
            rules::Verdict::Check(clauses, last) => {
                for clause in clauses {
                    let argument = call.arguments[usize::from(clause.argument)];
                    let low = u32::try_from(argument & 0xffff_ffff).unwrap();
                    let fits = match clause.test {
                        rules::Test::Is(value) => low == value,
                        rules::Test::IsNot(value) => low != value,
                        rules::Test::AnyOf(bits) => low & bits != 0,
                    };
                    if fits {
                        return word(&clause.verdict, call);
                    }
                }
                word(last, call)
            }
        }
    }
    let verdict = match table.calls.get(&call.number) {
        Some(verdict) => verdict,
        None if call.number <= table.last_known => &table.unnamed,
        None => &table.unknown,
    };
    word(verdict, call)
}

fn any_list() -> impl Strategy<Value = Syscalls> {
    prop_oneof![
        Just(Syscalls::Off),
        Just(Syscalls::Default),
        Just(Syscalls::Strict)
    ]
}

proptest! {
    #[test]
    fn arguments_are_judged_as_the_table_says(
        list in any_list(),
        userns: bool,
        deny_inet: bool,
        number in prop_oneof![
            0_u32..480,
            prop::sample::select(vec![
                libc::SYS_clone, libc::SYS_unshare, libc::SYS_setns, libc::SYS_socket, libc::SYS_ioctl, libc::SYS_personality,
            ]).prop_map(|n| u32::try_from(n).unwrap()),
        ],
        arguments: [u64; 6],
    ) {
        let profile = profile(list, userns, &[]);
        let table = rules::table(&profile, deny_inet);
        let program = Program(assemble::assemble(&table, assemble::ARCHITECTURE.unwrap(), true));
        let call = Call { number, arguments, ..Call::new(0, &[]) };
        prop_assert_eq!(run(&program, call), expected(&table, call));
    }

    #[test]
    fn other_architectures_are_killed_whatever_they_call(arch: u32, number: u32) {
        let program = list(Syscalls::Default);
        let call = Call { arch, number, ..Call::new(0, &[]) };
        prop_assume!(arch != assemble::ARCHITECTURE.unwrap());
        prop_assert_eq!(run(&program, call), KILL);
    }

    #[test]
    fn what_strict_allows_default_allows_too(number in 0_u32..470, arguments: [u64; 6]) {
        let (default, strict) = (list(Syscalls::Default), list(Syscalls::Strict));
        let call = Call { number, arguments, ..Call::new(0, &[]) };
        if run(&strict, call) == ALLOW {
            prop_assert_eq!(run(&default, call), ALLOW);
        }
    }

    #[test]
    fn the_upper_half_of_a_request_hides_nothing(upper: u32) {
        let upper = u64::from(upper) << 32;
        for program in [list(Syscalls::Default), list(Syscalls::Strict)] {
            prop_assert_eq!(says(&program, libc::SYS_ioctl, &[0, upper | 0x5412]), EPERM);
            prop_assert_eq!(says(&program, libc::SYS_ioctl, &[0, upper | 0x541c]), EPERM);
            prop_assert_eq!(says(&program, libc::SYS_ioctl, &[0, upper | 0x5401]), ALLOW);
            prop_assert_eq!(says(&program, libc::SYS_socket, &[upper | 17, 3, 0]), EPERM);
            prop_assert_eq!(says(&program, libc::SYS_clone, &[upper | 0x1000_0000]), EPERM);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_second_numbers_of_x86_64_are_killed() {
    let program = list(Syscalls::Default);
    for number in [0x4000_0000, 0x4000_0000 + 165, u32::MAX] {
        let call = Call {
            number,
            ..Call::new(0, &[])
        };
        assert_eq!(run(&program, call), KILL);
    }
    let mut older = features();
    older.seccomp_kill_process = false;
    let mut report = Protections::default();
    let wanted = profile(Syscalls::Default, false, &[]);
    let program = super::program(&wanted, &older, &mut report)
        .unwrap()
        .unwrap();
    let call = Call {
        number: 0x4000_0000,
        ..Call::new(0, &[])
    };
    assert_eq!(run(&program, call), 0);
}

#[test]
fn the_list_of_the_specification_is_refused_and_lifted_by_its_capability() {
    let cases: &[(libc::c_long, Capability)] = &[
        (libc::SYS_mount, Capability::CAP_SYS_ADMIN),
        (libc::SYS_umount2, Capability::CAP_SYS_ADMIN),
        (libc::SYS_pivot_root, Capability::CAP_SYS_ADMIN),
        (libc::SYS_mount_setattr, Capability::CAP_SYS_ADMIN),
        (libc::SYS_open_tree, Capability::CAP_SYS_ADMIN),
        (libc::SYS_move_mount, Capability::CAP_SYS_ADMIN),
        (libc::SYS_fsopen, Capability::CAP_SYS_ADMIN),
        (libc::SYS_setns, Capability::CAP_SYS_ADMIN),
        (libc::SYS_swapon, Capability::CAP_SYS_ADMIN),
        (libc::SYS_quotactl, Capability::CAP_SYS_ADMIN),
        (libc::SYS_keyctl, Capability::CAP_SYS_ADMIN),
        (libc::SYS_chroot, Capability::CAP_SYS_CHROOT),
        (libc::SYS_bpf, Capability::CAP_BPF),
        (libc::SYS_bpf, Capability::CAP_SYS_ADMIN),
        (libc::SYS_perf_event_open, Capability::CAP_PERFMON),
        (libc::SYS_userfaultfd, Capability::CAP_SYS_PTRACE),
        (libc::SYS_ptrace, Capability::CAP_SYS_PTRACE),
        (libc::SYS_process_vm_readv, Capability::CAP_SYS_PTRACE),
        (libc::SYS_kcmp, Capability::CAP_SYS_PTRACE),
        (libc::SYS_pidfd_getfd, Capability::CAP_SYS_PTRACE),
        (libc::SYS_kexec_load, Capability::CAP_SYS_BOOT),
        (libc::SYS_reboot, Capability::CAP_SYS_BOOT),
        (libc::SYS_init_module, Capability::CAP_SYS_MODULE),
        (libc::SYS_finit_module, Capability::CAP_SYS_MODULE),
        (libc::SYS_delete_module, Capability::CAP_SYS_MODULE),
        (libc::SYS_open_by_handle_at, Capability::CAP_DAC_READ_SEARCH),
        (libc::SYS_acct, Capability::CAP_SYS_PACCT),
        (libc::SYS_syslog, Capability::CAP_SYSLOG),
    ];
    for list in [Syscalls::Default, Syscalls::Strict] {
        for (number, capability) in cases {
            let closed = build(&profile(list, false, &[]));
            assert_eq!(says(&closed, *number, &[]), EPERM, "{list:?} {number}");
            let open = build(&profile(list, false, &[*capability]));
            assert_eq!(says(&open, *number, &[]), ALLOW, "{list:?} {number}");
        }
        for number in [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ] {
            let program = build(&profile(list, false, &[Capability::CAP_SYS_ADMIN]));
            assert_eq!(says(&program, number, &[]), EPERM);
        }
    }
}

#[test]
fn namespaces_are_refused_by_flag_and_clone3_altogether() {
    for program in [list(Syscalls::Default), list(Syscalls::Strict)] {
        for flag in [
            0x0002_0000,
            0x0200_0000,
            0x0400_0000,
            0x0800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            assert_eq!(says(&program, libc::SYS_unshare, &[flag]), EPERM);
            assert_eq!(says(&program, libc::SYS_clone, &[flag | 17]), EPERM);
        }
        assert_eq!(says(&program, libc::SYS_unshare, &[0x80]), EPERM);
        assert_eq!(says(&program, libc::SYS_unshare, &[0x400]), ALLOW);
        assert_eq!(says(&program, libc::SYS_clone, &[0x003d_0f00]), ALLOW);
        assert_eq!(says(&program, libc::SYS_clone3, &[]), ENOSYS);
        assert_eq!(says(&program, libc::SYS_personality, &[0xffff_ffff]), ALLOW);
        assert_eq!(says(&program, libc::SYS_personality, &[0]), EPERM);
    }
}

#[test]
fn refusing_user_namespaces_alone_refuses_nothing_else() {
    let program = build(&profile(Syscalls::Off, true, &[Capability::CAP_SYS_ADMIN]));
    assert_eq!(says(&program, libc::SYS_unshare, &[0x1002_0000]), EPERM);
    assert_eq!(says(&program, libc::SYS_unshare, &[0x0002_0000]), ALLOW);
    assert_eq!(says(&program, libc::SYS_clone, &[0x1000_0011]), EPERM);
    assert_eq!(says(&program, libc::SYS_clone3, &[]), ENOSYS);
    assert_eq!(says(&program, libc::SYS_setns, &[3, 0]), EPERM);
    assert_eq!(says(&program, libc::SYS_setns, &[3, 0x1000_0000]), EPERM);
    assert_eq!(says(&program, libc::SYS_setns, &[3, 0x4000_0000]), ALLOW);
    assert_eq!(says(&program, libc::SYS_mount, &[]), ALLOW);
    assert_eq!(says(&program, libc::SYS_socket, &[17, 3, 3]), ALLOW);
}

#[test]
fn the_key_userns_outlives_the_capability_that_lifts_the_list() {
    let program = build(&profile(
        Syscalls::Default,
        true,
        &[Capability::CAP_SYS_ADMIN],
    ));
    assert_eq!(says(&program, libc::SYS_unshare, &[0x1000_0000]), EPERM);
    assert_eq!(says(&program, libc::SYS_unshare, &[0x0002_0000]), ALLOW);
}

#[test]
fn socket_families_are_those_of_the_specification() {
    let default = list(Syscalls::Default);
    for family in [1, 2, 10] {
        assert_eq!(says(&default, libc::SYS_socket, &[family, 1, 0]), ALLOW);
    }
    assert_eq!(says(&default, libc::SYS_socket, &[16, 3, 0]), ALLOW);
    for (family, protocol) in [(16, 9), (16, 12), (17, 0), (38, 0), (40, 0), (0, 0)] {
        let asked = says(&default, libc::SYS_socket, &[family, 3, protocol]);
        assert_eq!(asked, EPERM, "{family} {protocol}");
    }
    let with = |capability| build(&profile(Syscalls::Default, false, &[capability]));
    let socket = |program: &Program, family, protocol| {
        says(program, libc::SYS_socket, &[family, 3, protocol]) == ALLOW
    };
    assert!(socket(&with(Capability::CAP_NET_RAW), 17, 0));
    assert!(socket(&with(Capability::CAP_NET_ADMIN), 16, 12));
    assert!(!socket(&with(Capability::CAP_NET_ADMIN), 38, 0));
    assert!(socket(&with(Capability::CAP_AUDIT_WRITE), 16, 9));
    assert!(!socket(&with(Capability::CAP_AUDIT_WRITE), 16, 12));
}

#[test]
fn sockets_stand_in_for_a_missing_network_namespace() {
    let mut lame = features();
    lame.net_namespace = Err("not in this kernel".to_owned());
    let mut wanted = profile(Syscalls::Off, false, &[Capability::CAP_NET_ADMIN]);
    wanted.network = Protected::tried(Network::None);
    let mut report = Protections::default();
    let program = program(&wanted, &lame, &mut report).unwrap().unwrap();
    assert_eq!(says(&program, libc::SYS_socket, &[1, 1, 0]), ALLOW);
    for family in [2, 10, 16, 17] {
        assert_eq!(says(&program, libc::SYS_socket, &[family, 1, 0]), EPERM);
    }
    assert_eq!(says(&program, libc::SYS_io_uring_setup, &[]), EPERM);
    assert_eq!(says(&program, libc::SYS_mount, &[]), ALLOW);
    assert!(matches!(report.0[&Protection::Network], Level::Degraded(_)));
    assert_eq!(report.0[&Protection::Seccomp], Level::Off);
    wanted.network = Protected::required(Network::None);
    let none = super::program(&wanted, &lame, &mut report).unwrap();
    assert!(none.is_none(), "required: that is refused elsewhere");
}

#[test]
fn what_is_missing_is_refused_or_reported() {
    let mut lame = features();
    lame.seccomp = Err("refused (EPERM)".to_owned());
    let mut report = Protections::default();
    let wanted = profile(Syscalls::Default, false, &[]);
    let refused = program(&wanted, &lame, &mut report).unwrap_err();
    assert_eq!(refused.reason, "feature-missing");
    assert!(refused.text.contains("'syscalls'") && refused.text.contains("EPERM"));
    let strict = ProfileConfig::new(Baseline::Strict);
    assert!(program(&strict, &lame, &mut report).unwrap().is_none());
    assert_eq!(
        report.0[&Protection::Seccomp],
        Level::Degraded("refused (EPERM)".to_owned())
    );
    let off = profile(Syscalls::Off, false, &[]);
    assert!(program(&off, &lame, &mut report).unwrap().is_none());
    assert_eq!(report.0[&Protection::Seccomp], Level::Off);
}

#[test]
fn the_rest_of_the_set_up_passes_a_filter_that_is_installed_early() {
    let early = ProfileConfig {
        no_new_privileges: false,
        ..profile(Syscalls::Strict, true, &[])
    };
    for (program, calls) in [
        (
            build(&early),
            &[
                libc::SYS_capset,
                libc::SYS_setgroups,
                libc::SYS_setresgid,
                libc::SYS_setresuid,
            ][..],
        ),
        (list(Syscalls::Strict), &[][..]),
    ] {
        let always = [
            libc::SYS_prctl,
            libc::SYS_getresuid,
            libc::SYS_getresgid,
            libc::SYS_getppid,
            libc::SYS_close_range,
            libc::SYS_chdir,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_execve,
            libc::SYS_landlock_restrict_self,
            libc::SYS_write,
            libc::SYS_fcntl,
            libc::SYS_getdents64,
            libc::SYS_wait4,
            libc::SYS_kill,
            libc::SYS_exit_group,
            libc::SYS_seccomp,
        ];
        for number in calls.iter().chain(&always) {
            assert_eq!(says(&program, *number, &[]), ALLOW, "{number}");
        }
    }
    assert_eq!(
        says(&list(Syscalls::Strict), libc::SYS_setresuid, &[]),
        EPERM
    );
}

#[test]
fn calls_of_tomorrow_are_told_apart_from_forbidden_ones() {
    let strict = list(Syscalls::Strict);
    assert_eq!(says(&strict, numbers::modern(470), &[]), ENOSYS);
    assert_eq!(says(&strict, numbers::modern(5000), &[]), ENOSYS);
    let default = list(Syscalls::Default);
    assert_eq!(says(&default, numbers::modern(470), &[]), ALLOW);
}

mod real {
    //! Runs programs under the filters of this kernel.

    use std::process::Command;

    use super::*;
    use crate::core::sys::seccomp::trial::{self, Try};

    /// Runs a shell line below a filter.
    fn shell(program: &Program, line: &str) -> (Option<i32>, String) {
        let output = trial::shell(&program.0, line).unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }

    #[test]
    fn ordinary_commands_work_under_both_lists() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        for list in [Syscalls::Default, Syscalls::Strict] {
            let program = build(&profile(list, true, &[]));
            let line = format!(
                "set -e; cd {at}; echo word > a; cat a | grep -q word; mkdir -p d; cp -p a d/b; mv d/b d/c; ln -s a l; \
                 tar cf t.tar a d l; rm -rf d; tar xf t.tar; ls -la | wc -l >/dev/null; date +%s >/dev/null; sleep 0; \
                 sort a | uniq | head -1 | tr a-z A-Z; (kill -0 $$); trap 'echo bye' EXIT; rm -rf t.tar d a l"
            );
            let (status, text) = shell(&program, &line);
            assert_eq!(status, Some(0), "{list:?}: {text}");
            assert!(text.contains("WORD") && text.contains("bye"), "{text}");
        }
    }

    #[test]
    fn python_works_under_both_lists() {
        let there = Command::new("python3").arg("-V").output();
        if !there.is_ok_and(|output| output.status.success()) {
            // Nothing in the product needs an interpreter; in CI no test may be left out.
            assert!(std::env::var_os("CI").is_none_or(|v| v.is_empty()));
            return;
        }
        for list in [Syscalls::Default, Syscalls::Strict] {
            let program = build(&profile(list, true, &[]));
            let line = "python3 -c 'import subprocess, threading, socket, json, tempfile\n\
                 t = threading.Thread(target=lambda: None); t.start(); t.join()\n\
                 socket.socket().close(); tempfile.TemporaryFile().close()\n\
                 print(subprocess.run([\"echo\", \"child\"], capture_output=True, text=True).stdout)'";
            let (status, text) = shell(&program, line);
            assert_eq!(status, Some(0), "{list:?}: {text}");
            assert!(text.contains("child"), "{text}");
        }
    }

    #[test]
    fn the_kernel_refuses_what_the_list_refuses() {
        let errno_of = |program: &Program, call| trial::errno_of(&program.0, call).unwrap();
        for list in [Syscalls::Default, Syscalls::Strict] {
            let program = build(&profile(list, false, &[]));
            assert_eq!(errno_of(&program, Try::UserNamespace), libc::EPERM);
            assert_eq!(errno_of(&program, Try::Mount), libc::EPERM);
            assert_eq!(errno_of(&program, Try::PacketSocket), libc::EPERM);
            assert_eq!(errno_of(&program, Try::InetSocket), 0);
        }
        let userns = build(&profile(Syscalls::Off, true, &[]));
        assert_eq!(errno_of(&userns, Try::UserNamespace), libc::EPERM);
        assert_eq!(errno_of(&userns, Try::InetSocket), 0);
    }
}
