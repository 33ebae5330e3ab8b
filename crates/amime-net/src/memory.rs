//! Giving back memory that only the start of a process, or a burst, needed.

use std::fs;
use std::io;
use std::iter;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between looks. A look reads one small file.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause in the first seconds: nothing runs as much code once as a start.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const FIRST_LOOKS: usize = 20;
/// Less than this is not worth the page faults.
const WORTHWHILE_BYTES: usize = 4 << 20;
/// Pause between trims of the heap, whose free parts may be wanted again soon.
const HEAP_PAUSE: Duration = Duration::from_secs(5);
/// The same while the last trim gave nothing back and the heap has not grown:
/// what was in use then may have come free since.
const QUIET_HEAP_PAUSE: Duration = Duration::from_secs(30);
/// Growth of the heap since its last trim that makes another one worthwhile.
const WORTHWHILE_GROWTH: usize = 1 << 20;
/// A trim that gives back this much is soon followed by another one.
const WORTHWHILE_TRIM: usize = 256 << 10;
/// Bytes of a page, the unit of `/proc/self/statm`.
const PAGE: usize = 4096;

/// Gives memory back from a thread of its own: calls [`release_code_pages`]
/// whenever at least 4 MiB of files are mapped, at most once a second after the
/// first two, and [`release_free_heap`] every five seconds as long as it has
/// something to give back or the heap grows, else every thirty.
///
/// A process runs much code once or rarely (argument parsing, TLS set-up,
/// decoding configuration), and each page of it stays counted as resident.
/// With a proxy in every pod that is most of what a proxy costs. What is in use
/// comes back with about a hundred page faults, well under a millisecond in all.
/// The allocator likewise keeps what a burst of requests needed.
/// Failures are ignored: they cost memory, not function.
pub fn keep_trimmed() {
    let work = || {
        let first = iter::repeat_n(FIRST_PAUSE, FIRST_LOOKS);
        let (mut trimmed, mut heap_kept, mut heap_pause) = (Instant::now(), 0, HEAP_PAUSE);
        for pause in first.chain(iter::repeat(PAUSE)) {
            thread::sleep(pause);
            let Ok(resident) = Resident::now() else { continue };
            if resident.files >= WORTHWHILE_BYTES {
                let _ = release_code_pages();
            }
            let grown = resident.anonymous.saturating_sub(heap_kept) >= WORTHWHILE_GROWTH;
            let due = if grown { HEAP_PAUSE } else { heap_pause };
            if trimmed.elapsed() >= due {
                release_free_heap();
                trimmed = Instant::now();
                heap_kept = Resident::now().map_or(resident.anonymous, |now| now.anonymous);
                let gave = resident.anonymous.saturating_sub(heap_kept) >= WORTHWHILE_TRIM;
                heap_pause = if gave { HEAP_PAUSE } else { QUIET_HEAP_PAUSE };
            }
        }
    };
    // The stack is for one small file and a loop over its lines.
    let _ = thread::Builder::new().name("trim".into()).stack_size(64 << 10).spawn(work);
}

/// Gives free pages of the heap back to the kernel, in the middle of it too.
/// Without effect where the C library has no such call.
pub fn release_free_heap() {
    // SAFETY: the call only takes the allocator's own locks; memory in use is
    // left as it is.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Bytes of memory that hold no program's file: heap and stacks.
///
/// Errors: `/proc/self/statm` cannot be read.
pub fn anonymous_bytes() -> io::Result<usize> {
    Ok(Resident::now()?.anonymous)
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

/// Bytes in memory, from `/proc/self/statm`.
struct Resident {
    /// Pages of files, shared memory included.
    files: usize,
    /// Heap and stacks.
    anonymous: usize,
}

impl Resident {
    fn now() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/statm")?;
        let mut pages = text.split_ascii_whitespace().skip(1).map_while(|n| n.parse().ok());
        let (Some(all), Some(files)) = (pages.next(), pages.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (all, files): (usize, usize) = (all, files);
        Ok(Self { files: files * PAGE, anonymous: all.saturating_sub(files) * PAGE })
    }
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
    #[cfg(target_env = "gnu")]
    fn free_pages_between_used_ones_are_given_back() {
        let blocks: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 8192]).collect();
        let kept: Vec<_> = blocks.into_iter().step_by(64).collect();
        let before = Resident::now().expect("statm is readable").anonymous;
        release_free_heap();
        let after = Resident::now().expect("statm is readable").anonymous;
        // Other tests allocate meanwhile, but not as much as was freed.
        assert!(before.saturating_sub(after) > 16 << 20, "{before} then {after}");
        assert!(kept.iter().all(|block| block == &[1; 8192]));
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let looked_at = release_code_pages().expect("own maps are readable");
        assert!(looked_at > 0);
        assert_eq!((1..=10).map(|n| n * n).sum::<i32>(), 385);
    }
}
