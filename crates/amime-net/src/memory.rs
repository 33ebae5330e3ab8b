//! Giving back memory that only the start of a process needed.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

/// When a daemon has most likely done what it does only once: after its start,
/// and after its peers have had time to connect.
const SETTLED: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// Calls [`release_code_pages`] from a thread of its own, twice in the first
/// ten seconds. A failure is ignored: it costs memory, not function.
pub fn release_once_settled() {
    let work = || {
        for pause in SETTLED {
            thread::sleep(pause);
            let _ = release_code_pages();
        }
    };
    let _ = thread::Builder::new().name("settle".into()).spawn(work);
}

/// Unmaps the program's code pages that are resident now; those still in use
/// come back from the page cache at their next use, without a disk read.
///
/// A process runs much code once (argument parsing, TLS set-up, decoding the
/// first configuration), and each page of it stays counted as resident. With a
/// proxy in every pod that is most of what a proxy costs, so a program calls
/// this once it has settled. Returns the bytes looked at.
///
/// Errors: `/proc/self/maps` cannot be read.
pub fn release_code_pages() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut bytes = 0;
    for (start, end) in maps.lines().filter_map(code_mapping) {
        // SAFETY: the range is a mapping of ours, private, file-backed and
        // executable but not writable, so each of its pages equals the file's
        // and the kernel reads it again when it is touched. Relocated data
        // lies in other mappings, which `code_mapping` leaves out.
        let done = unsafe {
            nix::libc::madvise(
                start as *mut nix::libc::c_void,
                end - start,
                nix::libc::MADV_DONTNEED,
            )
        };
        if done == 0 {
            bytes += end - start;
        }
    }
    Ok(bytes)
}

/// The bounds of a mapping of `maps` if it holds unmodified code of a file.
fn code_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let path = fields.nth(3)?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    (permissions == "r-xp" && path.starts_with('/')).then_some((parse(start)?, parse(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, want: Option<(usize, usize)>) {
        assert_eq!(code_mapping(line), want);
    }

    #[test]
    fn only_code_of_files_is_given_back() {
        check("1000-3000 r-xp 00001000 fe:00 99 /usr/bin/amime", Some((0x1000, 0x3000)));
        check("1000-3000 r--p 00001000 fe:00 99 /usr/bin/amime", None);
        check("1000-3000 rwxp 00001000 fe:00 99 /usr/bin/amime", None);
        check("7000-8000 r-xp 00000000 00:00 0 [vdso]", None);
        check("7000-8000 r-xp 00000000 00:00 0", None);
        check("", None);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let looked_at = release_code_pages().expect("own maps are readable");
        assert!(looked_at > 0);
        assert_eq!((1..=10).map(|n| n * n).sum::<i32>(), 385);
    }
}
