//! Pages of our own program file that are mapped and not needed any more.

#![allow(
    unsafe_code,
    reason = "madvise(2) on memory that is code has no safe wrapper"
)]

/// The code and the constants of this program, as far as they are the file's own.
#[derive(Debug, Default)]
pub struct ColdCode {
    ranges: Vec<(usize, usize)>,
}

impl ColdCode {
    /// Where they are. To be asked once: where a program lies does not change. Nowhere, if the mappings cannot be read.
    pub fn of_this_program() -> Self {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let (detailed, plain) = (read("/proc/self/smaps"), read("/proc/self/maps"));
        let sized = |(start, end)| {
            let (at, len) = (usize::try_from(start), usize::try_from(end - start));
            Some((at.ok()?, len.ok()?))
        };
        Self {
            ranges: agreed(clean_ranges(&detailed), &plain)
                .into_iter()
                .filter_map(sized)
                .collect(),
        }
    }

    /// Takes them out of our page tables. What is needed again comes back from the page cache by itself, a few pages at a time. For a
    /// daemon that has started and now waits: the start has touched far more than the waiting will.
    ///
    /// What runs next decides how much comes back at once: it should be the wait itself.
    pub fn forget(&self) {
        for &(at, len) in &self.ranges {
            // SAFETY: the range is a mapping of a file without write access and without a page of its own, so it holds nothing but the
            // file's bytes; the advice drops page table entries, and the next access reads the same bytes from the file again.
            unsafe {
                libc::madvise(
                    std::ptr::with_exposed_provenance_mut(at),
                    len,
                    libc::MADV_DONTNEED,
                );
            }
        }
    }
}

/// Ranges in the text of `smaps` that are mapped from a file, private, cannot be written to, and never were: what was relocated at the start
/// and then made read-only looks like the file's own and is not; dropping it would bring back pointers that lead nowhere.
fn clean_ranges(maps: &str) -> Vec<(u64, u64)> {
    let mut candidate = None;
    let mut found = Vec::new();
    for line in maps.lines() {
        match line.strip_prefix("Anonymous:") {
            Some(own) if own.trim() == "0 kB" => found.extend(candidate.take()),
            Some(_) => candidate = None,
            // The lines of numbers have a colon behind their first word.
            None if line
                .split_ascii_whitespace()
                .next()
                .is_some_and(|w| w.ends_with(':')) => {}
            None => candidate = file_range(line),
        }
    }
    found
}

/// Those that `maps` knows as well. An emulator may translate one of the two files and show the other as the host sees it: a page that is
/// dropped by a wrong address can be one that was written to.
fn agreed(mut ranges: Vec<(u64, u64)>, maps: &str) -> Vec<(u64, u64)> {
    let known: Vec<_> = maps.lines().filter_map(file_range).collect();
    ranges.retain(|range| known.contains(range));
    ranges
}

fn file_range(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let path = words.nth(3)?;
    if !matches!(rights, "r--p" | "r-xp") || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?)).filter(|(start, end)| start < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_files_own_is_given_back() {
        let maps = "01000000-0106a000 r--p 00000000 08:01 9 /usr/bin/x\n\
                    Size:                424 kB\n\
                    Anonymous:             0 kB\n\
                    VmFlags: rd mr mw me\n\
                    0106a000-0131c000 r-xp 00069000 08:01 9 /usr/bin/x\n\
                    Anonymous:             0 kB\n\
                    0131c000-01331000 r--p 0031a000 08:01 9 /usr/bin/x\n\
                    Anonymous:            84 kB\n\
                    01331000-01332000 rw-p 0032f000 08:01 9 /usr/bin/x\n\
                    Anonymous:             0 kB\n\
                    01332000-01334000 rw-p 00000000 00:00 0\n\
                    Anonymous:             0 kB\n\
                    7f98-7f99 r--p 00000000 08:01 9 /usr/bin/x\n\
                    7f9a-7f9b r-xp 00000000 00:00 0 [vdso]\n\
                    Anonymous:             0 kB\n\
                    bad line\n";
        assert_eq!(
            clean_ranges(maps),
            [(0x0100_0000, 0x0106_a000), (0x0106_a000, 0x0131_c000)]
        );
    }

    #[test]
    fn what_two_files_do_not_agree_on_is_kept() {
        let ranges = vec![(0x1000, 0x2000), (0x4000, 0x5000)];
        let shifted = "00000000-00001000 r--p 00000000 08:01 9 /usr/bin/x\n\
                       00004000-00005000 r-xp 00003000 08:01 9 /usr/bin/x\n";
        assert_eq!(agreed(ranges.clone(), shifted), [(0x4000, 0x5000)]);
        assert!(agreed(ranges, "").is_empty());
    }

    #[test]
    fn the_program_goes_on() {
        ColdCode::of_this_program().forget();
        // Through a table of pointers, which is what a relocated page holds.
        let shown: Box<dyn std::fmt::Display> = Box::new("still here");
        assert_eq!(shown.to_string(), "still here");
        ColdCode::of_this_program().forget();
        assert!(std::fs::read_to_string("/proc/self/smaps").is_ok());
    }
}
