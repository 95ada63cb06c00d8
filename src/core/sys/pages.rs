//! Pages of our own program file that are mapped and not needed any more.

#![allow(
    unsafe_code,
    reason = "madvise(2) on memory that is code has no safe wrapper"
)]

/// Takes the code and the constants of this program out of our page tables. What is needed again comes back from the page cache by itself,
/// a few pages at a time. For a daemon that has started and now waits: the start has touched far more than the waiting will.
///
/// Does nothing where the mappings cannot be read.
pub fn forget_cold_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, end) in clean_ranges(&maps) {
        let (Ok(at), Ok(len)) = (usize::try_from(start), usize::try_from(end - start)) else {
            continue;
        };
        // SAFETY: the range is a mapping of a file without write access, so it holds nothing but the file's bytes; the advice drops page
        // table entries, and the next access reads the same bytes from the file again.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(at),
                len,
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// Ranges that are mapped from a file, private, and cannot be written to.
fn clean_ranges(maps: &str) -> Vec<(u64, u64)> {
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let path = words.nth(3)?;
            if !matches!(rights, "r--p" | "r-xp") || !path.starts_with('/') {
                return None;
            }
            let (start, end) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?)).filter(|(start, end)| start < end)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_files_own_is_given_back() {
        let maps = "01000000-0106a000 r--p 00000000 08:01 9 /usr/bin/x\n\
                    0106a000-0131c000 r-xp 00069000 08:01 9 /usr/bin/x\n\
                    0131c000-01331000 rw-p 0031a000 08:01 9 /usr/bin/x\n\
                    01332000-01334000 rw-p 00000000 00:00 0\n\
                    7f9a-7f9b r-xp 00000000 00:00 0 [vdso]\n\
                    bad line\n";
        assert_eq!(
            clean_ranges(maps),
            [(0x0100_0000, 0x0106_a000), (0x0106_a000, 0x0131_c000)]
        );
    }

    #[test]
    fn the_program_goes_on() {
        forget_cold_code();
        assert_eq!("still here".len(), 10);
    }
}
