//! Giving back memory that only the start of a process needed.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

/// Pause between looks. A look reads one small file.
const PAUSE: Duration = Duration::from_secs(1);
/// Less than this is not worth the page faults. About what one kind of traffic
/// through a proxy needs.
const WORTHWHILE_BYTES: usize = 6 << 20;

/// Calls [`release_code_pages`] from a thread of its own, at most once a
/// second, whenever at least 6 MiB of files are mapped.
///
/// A process runs much code once or rarely (argument parsing, TLS set-up,
/// decoding configuration), and each page of it stays counted as resident.
/// With a proxy in every pod that is most of what a proxy costs. What is in use
/// comes back with about a hundred page faults, well under a millisecond in all.
/// Failures are ignored: they cost memory, not function.
pub fn keep_code_trimmed() {
    let work = || {
        loop {
            thread::sleep(PAUSE);
            if resident_file_bytes().is_ok_and(|bytes| bytes >= WORTHWHILE_BYTES) {
                let _ = release_code_pages();
            }
        }
    };
    // The stack is for one small file and a loop over its lines.
    let _ = thread::Builder::new().name("trim".into()).stack_size(64 << 10).spawn(work);
}

/// Unmaps the resident pages of program files that nobody can have changed;
/// those in use come back from the page cache, without a disk read, when they
/// are touched. Returns the bytes looked at.
///
/// Errors: `/proc/self/maps` cannot be read.
pub fn release_code_pages() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut bytes = 0;
    for (start, end) in maps.lines().filter_map(unchanged_mapping) {
        // SAFETY: the range is a mapping of ours, private, file-backed, not
        // writable and never relocated (`unchanged_mapping`), so each of its
        // pages equals the file's, and the kernel reads it again on a touch.
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

/// Bytes of file-backed pages that are resident now, from `/proc/self/statm`.
fn resident_file_bytes() -> io::Result<usize> {
    let pages = fs::read_to_string("/proc/self/statm")?
        .split_ascii_whitespace()
        .nth(2)
        .and_then(|pages| pages.parse::<usize>().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(pages * 4096)
}

/// The bounds of a mapping that holds a file's bytes as they are on disk: code,
/// and the read-only head of a program or library (file offset 0). Later
/// read-only parts are left out: the loader has written addresses into them.
fn unchanged_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let path = fields.nth(2)?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    let unchanged = match permissions {
        "r-xp" => true,
        "r--p" => parse(offset)? == 0,
        _ => false,
    };
    (unchanged && path.starts_with('/')).then_some((parse(start)?, parse(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, want: Option<(usize, usize)>) {
        assert_eq!(unchanged_mapping(line), want);
    }

    #[test]
    fn only_what_equals_its_file_is_given_back() {
        check("1000-3000 r-xp 00001000 fe:00 99 /usr/bin/amime", Some((0x1000, 0x3000)));
        check("1000-3000 r--p 00000000 fe:00 99 /usr/bin/amime", Some((0x1000, 0x3000)));
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
