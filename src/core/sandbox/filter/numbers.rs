//! System calls by number, for each target that releases are made for.
//!
//! Most numbers come from `libc`; what it lacks for a target stands here as a number from the kernel's own table. A call that a target
//! does not have is left out there.

use libc::{c_long, *};

use crate::core::sys::probe::NUMBER_BASE;

macro_rules! numbers {
    ($($name:ident)*) => { &[$($name),*] };
}

/// Number of a call from 403 on: these are the same everywhere, but for an offset.
pub(super) const fn modern(number: c_long) -> c_long {
    NUMBER_BASE + number
}

/// The highest number that this release knows about (`file_setattr`, Linux 6.17). The allow list answers `ENOSYS` above it, so that
/// a C library of tomorrow falls back to what it did before.
pub(super) const LAST_KNOWN: c_long = modern(469);

/// About systemd's `@system-service` without `@privileged`.
pub(super) const SERVICE: &[&[c_long]] = &[
    numbers! {
        SYS_accept4 SYS_brk SYS_capget SYS_chdir SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep
        SYS_clone SYS_close SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl
        SYS_epoll_pwait SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_fallocate
        SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock
        SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_get_mempolicy
        SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid
        SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority
        SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt
        SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1
        SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit SYS_ioctl
        SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr
        SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_mbind SYS_membarrier SYS_memfd_create
        SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_move_pages SYS_mprotect
        SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink
        SYS_mremap SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_nanosleep SYS_openat SYS_personality
        SYS_pipe2 SYS_ppoll SYS_prctl SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_madvise SYS_pselect6
        SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg
        SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat2 SYS_restart_syscall SYS_rt_sigaction
        SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend
        SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
        SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
        SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto
        SYS_set_mempolicy SYS_set_robust_list SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setitimer
        SYS_setpgid SYS_setpriority SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setxattr SYS_shutdown
        SYS_sigaltstack SYS_signalfd4 SYS_socket SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat
        SYS_sync SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
        SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime
        SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_unshare
        SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "mips",
        target_arch = "riscv64"
    ))]
    numbers! {
        SYS_accept
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "mips",
        target_arch = "x86"
    ))]
    numbers! {
        SYS_renameat
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "x86"
    ))]
    numbers! {
        SYS_pread64 SYS_pwrite64
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "mips",
        target_arch = "riscv64",
        target_arch = "x86"
    ))]
    numbers! {
        SYS_getrlimit SYS_migrate_pages SYS_mmap SYS_sync_file_range
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64"
    ))]
    numbers! {
        SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_shmat
        SYS_shmctl SYS_shmdt SYS_shmget
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "x86"
    ))]
    numbers! {
        SYS_fadvise64
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "arm",
        target_arch = "mips"
    ))]
    numbers! {
        SYS_access SYS_chmod SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_fork
        SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_open
        SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_signalfd SYS_stat SYS_symlink
        SYS_unlink SYS_utimes
    },
    #[cfg(any(target_arch = "arm", target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS__llseek SYS_fcntl64 SYS_fstat64 SYS_fstatfs64 SYS_ftruncate64 SYS_lstat64 SYS_mmap2 SYS_sendfile64
        SYS_sigaction SYS_sigpending SYS_sigprocmask SYS_sigreturn SYS_sigsuspend SYS_stat64 SYS_statfs64
        SYS_truncate64
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))]
    numbers! {
        SYS_newfstatat SYS_rseq
    },
    #[cfg(any(target_arch = "x86_64", target_arch = "arm", target_arch = "x86"))]
    numbers! {
        SYS_vfork
    },
    #[cfg(any(target_arch = "x86_64", target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_alarm SYS_set_thread_area SYS_time SYS_utime
    },
    #[cfg(any(target_arch = "arm", target_arch = "mips"))]
    numbers! {
        SYS_recv SYS_send
    },
    #[cfg(any(target_arch = "arm", target_arch = "x86"))]
    numbers! {
        SYS__newselect SYS_fstatat64 SYS_getegid32 SYS_geteuid32 SYS_getgid32 SYS_getgroups32 SYS_getresgid32
        SYS_getresuid32 SYS_getuid32 SYS_setfsgid32 SYS_setfsuid32 SYS_ugetrlimit
    },
    #[cfg(any(target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_ipc SYS_readdir SYS_signal SYS_waitpid
    },
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    numbers! {
        SYS_get_thread_area SYS_select
    },
    #[cfg(target_arch = "mips")]
    numbers! {
        SYS_cacheflush
    },
    #[cfg(target_arch = "x86")]
    numbers! {
        SYS_fadvise64_64
    },
    #[cfg(target_arch = "x86_64")]
    numbers! {
        SYS_arch_prctl SYS_epoll_ctl_old SYS_epoll_wait_old
    },
    // What libc lacks.
    #[cfg(target_arch = "mips")]
    &[
        4200, 4201, // pread64, pwrite64
        4142, // _newselect
        4254, 4293, 4305, 4367, // fadvise64, fstatat64, sync_file_range, rseq
    ],
    #[cfg(target_arch = "arm")]
    &[
        270,
        341,
        398, // arm_fadvise64_64, arm_sync_file_range, rseq
        0x000f_0001,
        0x000f_0002,
        0x000f_0003,
        0x000f_0004,
        0x000f_0005,
        0x000f_0006, // breakpoint to get_tls
    ],
    #[cfg(target_arch = "riscv64")]
    &[258, 259], // riscv_hwprobe, riscv_flush_icache
    #[cfg(target_arch = "x86")]
    &[386], // rseq
    // 64-bit times for 32-bit targets, and SysV IPC without the multiplexer.
    #[cfg(target_pointer_width = "32")]
    &[
        modern(403),
        modern(406),
        modern(407),
        modern(408),
        modern(409),
        modern(410),
        modern(411),
        modern(412),
        modern(413),
        modern(414),
        modern(416),
        modern(417),
        modern(418),
        modern(419),
        modern(420),
        modern(421),
        modern(422),
        modern(423),
    ],
    #[cfg(any(target_arch = "x86", target_arch = "mips"))]
    &[
        modern(393),
        modern(394),
        modern(395),
        modern(396),
        modern(397),
        modern(398),
        modern(399),
        modern(400),
        modern(401),
        modern(402),
    ],
    &[
        modern(424), // pidfd_send_signal
        modern(434), // pidfd_open
        modern(436), // close_range
        modern(437), // openat2
        modern(439), // faccessat2
        modern(441), // epoll_pwait2
        modern(444),
        modern(445),
        modern(446), // Landlock: a script may confine itself further
        modern(448), // process_mrelease
        modern(449), // futex_waitv
        modern(450), // set_mempolicy_home_node
        modern(451), // cachestat
        modern(452), // fchmodat2
        modern(453), // map_shadow_stack
        modern(454),
        modern(455),
        modern(456), // futex_wake, futex_wait, futex_requeue
        modern(459),
        modern(461), // lsm_get_self_attr, lsm_list_modules
        modern(462), // mseal
        modern(463),
        modern(464),
        modern(465),
        modern(466), // setxattrat to removexattrat
        modern(468),
        modern(469), // file_getattr, file_setattr
    ],
];

/// Mounts and what belongs to them.
pub(super) const MOUNTS: &[&[c_long]] = &[
    numbers! {
        SYS_lookup_dcookie SYS_mount SYS_mount_setattr SYS_nfsservctl SYS_pivot_root SYS_quotactl SYS_swapoff
        SYS_swapon SYS_umount2
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "arm",
        target_arch = "mips"
    ))]
    numbers! {
        SYS__sysctl SYS_uselib
    },
    #[cfg(any(target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_umount
    },
    &[
        modern(428),
        modern(429), // open_tree, move_mount
        modern(430),
        modern(431),
        modern(432),
        modern(433), // fsopen to fspick
        modern(443), // quotactl_fd
        modern(467), // open_tree_attr
    ],
];

/// Looking into other processes.
pub(super) const TRACING: &[&[c_long]] = &[
    numbers! {
        SYS_kcmp SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_userfaultfd
    },
    &[modern(438)], // pidfd_getfd
];

/// The kernel's key rings.
pub(super) const KEYS: &[&[c_long]] = &[numbers! {
    SYS_add_key SYS_keyctl SYS_request_key
}];

/// Does what other calls do, without being seen by a filter.
pub(super) const IO_URING: &[&[c_long]] = &[&[modern(425), modern(426), modern(427)]];

/// Restarting and replacing the kernel.
pub(super) const BOOT: &[&[c_long]] = &[
    numbers! {
        SYS_kexec_load SYS_reboot
    },
    #[cfg(target_arch = "x86_64")]
    numbers! {
        SYS_kexec_file_load
    },
    #[cfg(target_arch = "aarch64")]
    &[294], // kexec_file_load
    #[cfg(target_arch = "arm")]
    &[401], // kexec_file_load
];

/// Kernel modules.
pub(super) const MODULES: &[&[c_long]] = &[numbers! {
    SYS_delete_module SYS_finit_module SYS_init_module
}];

/// Hardware.
pub(super) const RAW_IO: &[&[c_long]] = &[
    #[cfg(any(target_arch = "x86_64", target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_ioperm SYS_iopl SYS_modify_ldt
    },
    #[cfg(any(target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_vm86
    },
    #[cfg(target_arch = "x86")]
    numbers! {
        SYS_vm86old
    },
];

/// Giving files away.
pub(super) const OWNERS: &[&[c_long]] = &[
    numbers! {
        SYS_fchown SYS_fchownat
    },
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "arm",
        target_arch = "mips"
    ))]
    numbers! {
        SYS_chown SYS_lchown
    },
    #[cfg(any(target_arch = "arm", target_arch = "x86"))]
    numbers! {
        SYS_chown32 SYS_fchown32 SYS_lchown32
    },
];

/// Setting the clock.
pub(super) const CLOCK: &[&[c_long]] = &[
    numbers! {
        SYS_adjtimex SYS_clock_adjtime SYS_clock_settime SYS_settimeofday
    },
    #[cfg(any(target_arch = "mips", target_arch = "x86"))]
    numbers! {
        SYS_stime
    },
    #[cfg(target_pointer_width = "32")]
    &[modern(404), modern(405)],
];

/// Becoming somebody else.
pub(super) const IDENTITY: &[&[c_long]] = &[
    numbers! {
        SYS_capset SYS_setgid SYS_setgroups SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setuid
    },
    #[cfg(any(target_arch = "arm", target_arch = "x86"))]
    numbers! {
        SYS_setgid32 SYS_setgroups32 SYS_setregid32 SYS_setresgid32 SYS_setresuid32 SYS_setreuid32 SYS_setuid32
    },
];

/// The host's names and terminals.
pub(super) const HOST: &[&[c_long]] = &[numbers! {
    SYS_setdomainname SYS_sethostname SYS_vhangup
}];

/// Watching whole file systems.
pub(super) const WATCHING: &[&[c_long]] = &[numbers! {
    SYS_fanotify_init SYS_fanotify_mark
}];
