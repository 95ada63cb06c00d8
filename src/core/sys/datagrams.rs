//! Several datagrams by one call.

#![allow(unsafe_code, reason = "sendmmsg(2) has no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _};

/// Most that one call takes.
const MOST: usize = 32;

/// Sends pieces of a text over a connected socket, each as a datagram, in order; at most 32 of them.
///
/// # Errors
/// None could be sent. Else the number of those that were; the next call tells why it were not more.
pub fn send(socket: impl AsFd, text: &[u8], pieces: &[Range<usize>]) -> io::Result<usize> {
    let mut vectors: [libc::iovec; MOST] = std::array::from_fn(|_| libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    });
    // SAFETY: a message of zeros is one without name, data and control data.
    let mut messages: [libc::mmsghdr; MOST] = unsafe { std::mem::zeroed() };
    let mut count: libc::c_uint = 0;
    for (range, (vector, message)) in pieces.iter().zip(vectors.iter_mut().zip(&mut messages)) {
        let piece = text.get(range.clone()).unwrap_or_default();
        vector.iov_base = piece.as_ptr().cast_mut().cast();
        vector.iov_len = piece.len();
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // The call itself: musl makes single ones of it, because fields that are int for it are long for a kernel of 64 bits. Where that
    // is so, a zeroed message has zeros between them.
    //
    // SAFETY: the first `count` messages point to vectors that point into `text`; all of it outlives the call, which only reads it.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_sendmmsg,
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn each_piece_is_a_datagram_and_a_full_socket_says_how_far_it_got() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let text = b"onetwo";
        assert_eq!(send(&ours, text, &[0..3, 3..6, 6..6]).unwrap(), 3);
        let mut buffer = [0; 8];
        for expected in [&b"one"[..], b"two", b""] {
            let n = theirs.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], expected);
        }
        assert_eq!(send(&ours, text, &[]).unwrap(), 0);

        ours.set_nonblocking(true).unwrap();
        let many = vec![0..6; 100];
        let mut sent = 0;
        let end = loop {
            match send(&ours, text, &many) {
                Ok(n) => {
                    assert!(0 < n && n <= MOST);
                    sent += n;
                }
                Err(e) => break e,
            }
        };
        assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
        theirs.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| theirs.recv(&mut buffer).ok()).count();
        assert_eq!(received, sent);
    }
}
