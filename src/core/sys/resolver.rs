//! The two questions to the system's resolver that `std` cannot ask: the canonical name of a host, and the name of an address.
//!
//! Both may block for as long as the resolver likes; callers bound the wait ([`crate::core::hostname`]).

#![allow(
    unsafe_code,
    reason = "getaddrinfo(3) and getnameinfo(3) have no safe wrapper in std or rustix"
)]

use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::ptr;

/// The canonical name of a host as the resolver knows it, unchanged.
pub fn canonical_name(host: &str) -> Option<String> {
    let host = CString::new(host).ok()?;
    // SAFETY: addrinfo is a plain C struct of integers and pointers, for which all zeros is a value ("no hints").
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_family = libc::AF_UNSPEC;
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_flags = libc::AI_CANONNAME;
    let mut list: *mut libc::addrinfo = ptr::null_mut();
    // SAFETY: host is NUL-terminated, hints is initialised, list is a valid place for the result; a null service is allowed.
    let status = unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &hints, &mut list) };
    if status != 0 || list.is_null() {
        return None;
    }
    // SAFETY: on success list points to at least one entry; its ai_canonname is null or a NUL-terminated string owned by the list.
    let name = unsafe {
        let text = (*list).ai_canonname;
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    // SAFETY: list came from getaddrinfo, is freed once, and nothing of it is used afterwards (the name was copied).
    unsafe { libc::freeaddrinfo(list) };
    name
}

/// The name that an address resolves to; `None` when it has none.
pub fn name_of_address(address: IpAddr) -> Option<String> {
    let mut host = [0_u8; 1025];
    let host_len = libc::socklen_t::try_from(host.len()).ok()?;
    let flags = libc::NI_NAMEREQD;
    let status = match address {
        IpAddr::V4(v4) => {
            // SAFETY: sockaddr_in is a plain C struct for which all zeros is a value.
            let mut socket: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            socket.sin_family = libc::sa_family_t::try_from(libc::AF_INET).ok()?;
            socket.sin_addr.s_addr = u32::from_ne_bytes(v4.octets());
            let len = libc::socklen_t::try_from(size_of_val(&socket)).ok()?;
            // SAFETY: the address is an initialised sockaddr_in of that length; host is writable for host_len bytes; a null service of length 0 is allowed.
            unsafe {
                libc::getnameinfo(
                    ptr::from_ref(&socket).cast(),
                    len,
                    host.as_mut_ptr().cast(),
                    host_len,
                    ptr::null_mut(),
                    0,
                    flags,
                )
            }
        }
        IpAddr::V6(v6) => {
            // SAFETY: sockaddr_in6 is a plain C struct for which all zeros is a value.
            let mut socket: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            socket.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).ok()?;
            socket.sin6_addr.s6_addr = v6.octets();
            let len = libc::socklen_t::try_from(size_of_val(&socket)).ok()?;
            // SAFETY: as above, with a sockaddr_in6.
            unsafe {
                libc::getnameinfo(
                    ptr::from_ref(&socket).cast(),
                    len,
                    host.as_mut_ptr().cast(),
                    host_len,
                    ptr::null_mut(),
                    0,
                    flags,
                )
            }
        }
    };
    if status != 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&host).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_has_a_canonical_name_and_nonsense_has_none() {
        assert!(canonical_name("localhost").is_some_and(|n| !n.is_empty()));
        assert_eq!(canonical_name("a\0b"), None);
        assert_eq!(canonical_name(""), None);
    }

    #[test]
    fn the_loopback_address_can_be_asked_for_in_both_families() {
        // Whether there is a name is the host's affair; that asking is safe and gives text or nothing is ours.
        for address in ["127.0.0.1", "::1"] {
            let name = name_of_address(address.parse().unwrap());
            assert!(name.is_none_or(|n| !n.is_empty() && !n.contains('\0')));
        }
    }
}
