//! `seccomp(2)`, which neither std nor rustix has.

use std::io;

/// Action words of `linux/seccomp.h`.
pub const KILL_PROCESS: u32 = 0x8000_0000;
pub const KILL_THREAD: u32 = 0;
pub const ERRNO: u32 = 0x0005_0000;
pub const ALLOW: u32 = 0x7fff_0000;

/// Largest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Puts the calling thread under a filter, for good. Allocates nothing: it is called between fork and exec.
///
/// # Errors
/// `EACCES` without no_new_privs and `CAP_SYS_ADMIN`, `EINVAL` for a program that the kernel does not take, `ENOSYS`.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let filter = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from a slice of that length and writes nothing.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0_u32,
            &raw const filter,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Processes below a filter, for tests of filters.
#[cfg(test)]
pub mod trial {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// Runs a line of the shell below a filter.
    pub fn shell(program: &[libc::sock_filter], line: &str) -> io::Result<Output> {
        let program = program.to_vec();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: the closure issues two system calls and allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                rustix::thread::set_no_new_privs(true)?;
                install(&program)
            });
        }
        command.output()
    }

    /// A call that a filter may refuse.
    #[derive(Clone, Copy, Debug)]
    pub enum Try {
        UserNamespace,
        Mount,
        PacketSocket,
        InetSocket,
    }

    impl Try {
        fn go(self) -> bool {
            let none = std::ptr::null();
            // SAFETY: constants and null pointers, which each of the calls allows.
            #[allow(unsafe_code)]
            unsafe {
                match self {
                    Self::UserNamespace => libc::unshare(libc::CLONE_NEWUSER) == 0,
                    Self::Mount => {
                        libc::mount(none, c"/nowhere".as_ptr(), none, 0, none.cast()) == 0
                    }
                    Self::PacketSocket => libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) >= 0,
                    Self::InetSocket => libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) >= 0,
                }
            }
        }
    }

    /// Makes one call below a filter, in a process of its own: 0 or the errno; beyond 10 000, the errno of the filter itself.
    pub fn errno_of(program: &[libc::sock_filter], call: Try) -> io::Result<i32> {
        let (reader, writer) = rustix::pipe::pipe()?;
        let errno = |e: io::Error| e.raw_os_error().unwrap_or(-1);
        // SAFETY: the child issues system calls only and ends by _exit.
        #[allow(unsafe_code)]
        unsafe {
            let pid = libc::fork();
            if pid < 0 {
                return Err(io::Error::last_os_error());
            }
            if pid == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let found = match install(program) {
                    Err(e) => 10_000 + errno(e),
                    Ok(()) if call.go() => 0,
                    Ok(()) => errno(io::Error::last_os_error()),
                };
                let bytes = found.to_ne_bytes();
                libc::write(writer.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(0);
            }
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        let mut bytes = [0; 4];
        rustix::io::read(&reader, &mut bytes)?;
        Ok(i32::from_ne_bytes(bytes))
    }
}
