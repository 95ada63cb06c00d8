//! Asks the kernel what it can do by calling it, in a child that ends right afterwards: whatever a call changes dies with the child,
//! and a call that is answered with a deadly signal kills the child only.

#![allow(
    unsafe_code,
    reason = "most of these calls have no wrapper, and the child between fork and exit may use nothing but system calls"
)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use super::process::CloneArgs;
use super::seccomp;

/// One question each. The order is that of asking: the namespaces come after everything that forks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Probe {
    OpenAt2 = 0,
    CloseRange,
    PidFd,
    /// The answer's value is the ABI version.
    Landlock,
    Ambient,
    Subreaper,
    NoNewPrivileges,
    Execveat,
    PeerPidFd,
    /// With `CLONE_INTO_CGROUP`.
    Clone3,
    SeccompKillProcess,
    IpcNamespace,
    NetNamespace,
    PidNamespace,
    /// And changing the propagation in it.
    MountNamespace,
    /// fsopen, fsconfig, fsmount and move_mount.
    MountApi,
    MountSetattr,
    NoSymFollow,
    /// Installs a filter that allows everything. Last: it needs no_new_privs.
    SeccompFilter,
}

impl Probe {
    pub const ALL: [Self; 19] = [
        Self::OpenAt2,
        Self::CloseRange,
        Self::PidFd,
        Self::Landlock,
        Self::Ambient,
        Self::Subreaper,
        Self::NoNewPrivileges,
        Self::Execveat,
        Self::PeerPidFd,
        Self::Clone3,
        Self::SeccompKillProcess,
        Self::IpcNamespace,
        Self::NetNamespace,
        Self::PidNamespace,
        Self::MountNamespace,
        Self::MountApi,
        Self::MountSetattr,
        Self::NoSymFollow,
        Self::SeccompFilter,
    ];
}

/// What came of asking.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    Yes(i32),
    No(Refused),
}

/// Why not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    Errno(i32),
    /// The call was answered with this signal.
    Killed(i32),
    /// Not asked: no process could be made for it.
    NotAsked(i32),
}

/// The longest that the child may take, in seconds; then the kernel ends it.
const PATIENCE: u32 = 5;

/// Bytes of one answer: probe, kind, two of padding, value.
const RECORD: usize = 8;

/// Asks everything, in the order of [`Probe::ALL`].
pub fn run() -> Vec<(Probe, Answer)> {
    let mut answers = Vec::with_capacity(Probe::ALL.len());
    while answers.len() < Probe::ALL.len() {
        let rest = &Probe::ALL[answers.len()..];
        match ask(rest) {
            Ok((got, signal)) => {
                answers.extend(got.iter().copied());
                if got.len() < rest.len() {
                    // It died over the next question: note that, and go on behind it.
                    answers.push((rest[got.len()], Answer::No(Refused::Killed(signal))));
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let refused = Answer::No(Refused::NotAsked(errno));
                answers.extend(rest.iter().map(|probe| (*probe, refused)));
            }
        }
    }
    answers
}

/// One child for a row of questions: the answers until it ended, and the signal that it ended with (0 = it exited).
fn ask(probes: &[Probe]) -> io::Result<(Vec<(Probe, Answer)>, i32)> {
    let (reader, writer) = rustix::pipe::pipe_with(
        rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
    )?;
    // SAFETY: the child calls only `answer_all`, which issues system calls on values made before the fork and never returns.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        answer_all(probes, writer.as_raw_fd());
    }
    drop(writer);
    let signal = wait(pid);
    // All answers fit into the pipe, so they are read after the child's end, without waiting.
    Ok((read_answers(probes, &reader), signal))
}

fn read_answers(probes: &[Probe], reader: &OwnedFd) -> Vec<(Probe, Answer)> {
    let mut answers = Vec::with_capacity(probes.len());
    for probe in probes {
        let mut record = [0_u8; RECORD];
        match rustix::io::read(reader, &mut record) {
            Ok(RECORD) if record[0] == *probe as u8 => {
                let value = i32::from_ne_bytes([record[4], record[5], record[6], record[7]]);
                answers.push((
                    *probe,
                    if record[1] == 1 {
                        Answer::Yes(value)
                    } else {
                        Answer::No(Refused::Errno(value))
                    },
                ));
            }
            _ => break,
        }
    }
    answers
}

/// Waits for the child, which ends by its own alarm at the latest.
fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place; pid is a child of ours that nobody else waits for.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if got == pid {
            return if libc::WIFSIGNALED(status) {
                libc::WTERMSIG(status)
            } else {
                0
            };
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            // SIGCHLD is ignored: the child has gone without leaving its status.
            return 0;
        }
    }
}

/// In the child. Never returns.
fn answer_all(probes: &[Probe], out: libc::c_int) -> ! {
    // SAFETY: plain system calls on numbers; the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::alarm(PATIENCE);
    }
    for probe in probes {
        let value = question(*probe);
        let (kind, value) = if value >= 0 {
            (1, i32::try_from(value).unwrap_or(i32::MAX))
        } else {
            (0, errno())
        };
        let mut record = [0_u8; RECORD];
        record[0] = *probe as u8;
        record[1] = kind;
        record[4..].copy_from_slice(&value.to_ne_bytes());
        // SAFETY: the record is RECORD bytes long; a failed write leaves the answer out, which the parent sees.
        unsafe { libc::write(out, record.as_ptr().cast(), RECORD) };
    }
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn set_errno(value: i32) {
    // SAFETY: the location is valid for the calling thread.
    unsafe { *libc::__errno_location() = value };
}

/// 0 instead of -1 when the call failed with one of these: it got far enough to look at its arguments.
fn reached(result: libc::c_long, with: &[i32]) -> libc::c_long {
    if result == -1 && with.contains(&errno()) {
        0
    } else {
        result
    }
}

const AT_EMPTY_PATH: libc::c_int = 0x1000;
const BAD_FD: libc::c_int = -1;

/// `struct mount_attr`
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `struct open_how`
#[repr(C)]
#[derive(Default)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// -1 and errno, or what the call gave. Descriptors stay open: the child is about to end.
fn question(probe: Probe) -> libc::c_long {
    let root = c"/".as_ptr();
    let empty = c"".as_ptr();
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: for all of them: pointers are to C strings and structures of this frame whose sizes are given; the calls change only this
    // process, which ends right afterwards; a null pointer stands only where the call allows it.
    unsafe {
        match probe {
            Probe::OpenAt2 => {
                let how = OpenHow {
                    flags: (libc::O_PATH | libc::O_CLOEXEC).cast_unsigned().into(),
                    mode: 0,
                    resolve: 0x02 | 0x04,
                };
                let size = size_of::<OpenHow>();
                libc::syscall(
                    libc::SYS_openat2,
                    libc::AT_FDCWD,
                    root,
                    &raw const how,
                    size,
                )
            }
            // A range in which nothing is open. The flag is younger (5.11) than the call (5.9), and it is what we need.
            Probe::CloseRange => libc::syscall(libc::SYS_close_range, u32::MAX - 1, u32::MAX, 4),
            Probe::PidFd => {
                let fd = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
                if fd < 0 {
                    return fd;
                }
                let sent = libc::syscall(libc::SYS_pidfd_send_signal, fd, 0, null, 0);
                if sent < 0 { sent } else { 0 }
            }
            Probe::Landlock => libc::syscall(444 + NUMBER_BASE, null, 0_usize, 1_u32),
            Probe::Ambient => {
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET, 0, 0, 0).into()
            }
            Probe::Subreaper => {
                let mut now: libc::c_int = 0;
                libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut now, 0, 0, 0).into()
            }
            Probe::NoNewPrivileges => libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0).into(),
            Probe::Execveat => {
                let result =
                    libc::syscall(libc::SYS_execveat, BAD_FD, empty, null, null, AT_EMPTY_PATH);
                reached(result, &[libc::EBADF, libc::EFAULT])
            }
            Probe::PeerPidFd => {
                const SO_PEERPIDFD: libc::c_int = 77;
                let mut pair = [0; 2];
                if libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) != 0 {
                    return -1;
                }
                let mut fd: libc::c_int = 0;
                let mut len: libc::socklen_t = 4;
                let place = (&raw mut fd).cast();
                libc::getsockopt(pair[0], libc::SOL_SOCKET, SO_PEERPIDFD, place, &raw mut len)
                    .into()
            }
            Probe::Clone3 => {
                // A cgroup that cannot be: a kernel that knows all of it looks for the descriptor and makes no process.
                let args = CloneArgs {
                    flags: 0x2_0000_0000,
                    exit_signal: libc::SIGCHLD.cast_unsigned().into(),
                    cgroup: 0x7fff_fff0,
                    ..CloneArgs::default()
                };
                let size = size_of::<CloneArgs>();
                let pid = libc::syscall(libc::SYS_clone3, &raw const args, size);
                if pid == 0 {
                    libc::_exit(0);
                }
                if pid > 0 {
                    // It made one all the same: not what was asked for. There is no other child.
                    libc::waitpid(-1, std::ptr::null_mut(), 0);
                    set_errno(libc::EINVAL);
                    return -1;
                }
                reached(pid, &[libc::EBADF])
            }
            Probe::SeccompKillProcess => {
                const GET_ACTION_AVAIL: libc::c_uint = 2;
                let action = seccomp::KILL_PROCESS;
                libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action)
            }
            Probe::IpcNamespace => libc::unshare(libc::CLONE_NEWIPC).into(),
            Probe::NetNamespace => libc::unshare(libc::CLONE_NEWNET).into(),
            Probe::PidNamespace => libc::unshare(libc::CLONE_NEWPID).into(),
            Probe::MountNamespace => {
                if libc::unshare(libc::CLONE_NEWNS) != 0 {
                    return -1;
                }
                let flags = libc::MS_REC | libc::MS_SLAVE;
                libc::mount(std::ptr::null(), root, std::ptr::null(), flags, null).into()
            }
            Probe::MountApi => mount_api(),
            Probe::MountSetattr => set_nothing(),
            Probe::NoSymFollow => {
                let fd = tmpfs();
                if fd < 0 {
                    return fd;
                }
                let attr = MountAttr {
                    set: 0x0020_0000,
                    ..MountAttr::default()
                };
                let size = size_of::<MountAttr>();
                let number = libc::SYS_mount_setattr;
                libc::syscall(number, fd, empty, AT_EMPTY_PATH, &raw const attr, size)
            }
            Probe::SeccompFilter => {
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                    return -1;
                }
                let allow = [libc::sock_filter {
                    code: 0x06,
                    jt: 0,
                    jf: 0,
                    k: seccomp::ALLOW,
                }];
                match seccomp::install(&allow) {
                    Ok(()) => 0,
                    Err(_) => -1,
                }
            }
        }
    }
}

/// Numbers from 403 on are the same everywhere but for the offset of the two MIPS conventions.
#[cfg(target_arch = "mips")]
pub const NUMBER_BASE: libc::c_long = 4000;
#[cfg(target_arch = "mips64")]
pub const NUMBER_BASE: libc::c_long = 5000;
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
pub const NUMBER_BASE: libc::c_long = 0;

/// Changes nothing, but needs everything that changing something would.
fn set_nothing() -> libc::c_long {
    let attr = MountAttr::default();
    let size = size_of::<MountAttr>();
    // SAFETY: a structure of that size, a C string, and no change.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            0,
            &raw const attr,
            size,
        )
    }
}

/// A file system that is mounted nowhere.
fn tmpfs() -> libc::c_long {
    const CREATE: libc::c_uint = 6;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: a C string and null pointers where the call takes none.
    unsafe {
        let context = libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1);
        if context < 0 {
            return context;
        }
        if libc::syscall(libc::SYS_fsconfig, context, CREATE, null, null, 0) < 0 {
            return -1;
        }
        libc::syscall(libc::SYS_fsmount, context, 1, 0)
    }
}

fn mount_api() -> libc::c_long {
    const FROM_EMPTY_PATH: libc::c_int = 4;
    let fd = tmpfs();
    if fd < 0 {
        return fd;
    }
    // Onto a descriptor that cannot be: the call exists, and nothing moves.
    // SAFETY: C strings and numbers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd,
            c"".as_ptr(),
            BAD_FD,
            c"x".as_ptr(),
            FROM_EMPTY_PATH,
        )
    };
    reached(moved, &[libc::EBADF])
}

/// Number of the last capability that the kernel knows; 37 when it does not say.
pub fn last_capability() -> u8 {
    let known = |number: &u8| {
        // SAFETY: asks about a number, changes nothing.
        unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(*number), 0, 0, 0) >= 0 }
    };
    (0..64_u8).take_while(known).last().unwrap_or(37)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_answered_once_and_in_order() {
        let answers = run();
        let asked: Vec<_> = answers.iter().map(|(probe, _)| *probe).collect();
        assert_eq!(asked, Probe::ALL);
        for (probe, answer) in answers {
            let not_asked = matches!(answer, Answer::No(Refused::NotAsked(_)));
            assert!(!not_asked, "{probe:?} was not asked");
        }
    }

    #[test]
    fn a_kernel_of_today_knows_the_calls_that_need_no_rights() {
        let answers = run();
        for probe in [
            Probe::NoNewPrivileges,
            Probe::Subreaper,
            Probe::Ambient,
            Probe::SeccompFilter,
        ] {
            let answer = answers.iter().find(|(p, _)| *p == probe).unwrap().1;
            assert!(matches!(answer, Answer::Yes(_)), "{probe:?}: {answer:?}");
        }
    }

    #[test]
    fn the_last_capability_is_the_kernels() {
        let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert_eq!(last_capability().to_string(), text.trim());
    }
}
