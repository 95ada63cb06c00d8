//! A child that is not to outlive whoever answers for it.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::Signal;

/// Has the kernel send the child this signal when the thread that starts it ends, in whatever way. What the child starts is not touched, and
/// a child that becomes somebody else by a set-user-id bit is not either (`prctl(2)`, `PR_SET_PDEATHSIG`).
pub fn tell_child(command: &mut Command, signal: Signal) {
    let us = rustix::process::getpid();
    let arrange = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // We may have ended before the call.
        if rustix::process::getppid() == Some(us) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and neither allocates nor locks.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(arrange);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn the_child_is_told_when_its_thread_ends() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            tell_child(&mut command, Signal::TERM);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
}
