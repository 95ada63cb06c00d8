//! Users and groups by name, from `/etc/passwd` and `/etc/group`: a static binary has no name service modules to ask.

use std::fs;
use std::path::Path;

/// uid and primary gid of a user. `None` when there is no such user or the file cannot be read.
pub fn find_user(name: &str) -> Option<(u32, u32)> {
    find_user_in(Path::new("/etc/passwd"), name)
}

/// gid of a group. `None` when there is no such group or the file cannot be read.
pub fn find_group(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/group").ok()?;
    field(&text, name, 2)?.parse().ok()
}

fn find_user_in(passwd: &Path, name: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string(passwd).ok()?;
    Some((
        field(&text, name, 2)?.parse().ok()?,
        field(&text, name, 3)?.parse().ok()?,
    ))
}

fn field<'a>(text: &'a str, name: &str, at: usize) -> Option<&'a str> {
    text.lines()
        .find(|line| line.split(':').next() == Some(name))
        .and_then(|line| line.split(':').nth(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_zero_and_nobody_else_is_invented() {
        assert_eq!(find_user("root"), Some((0, 0)));
        assert_eq!(find_group("root"), Some(0));
        assert_eq!(find_user("no-such-user-here"), None);
        assert_eq!(find_group(""), None);
    }
}
