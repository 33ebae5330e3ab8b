//! From workers' buffers to files: one thread for all access logs.
//!
//! A worker appends finished lines to its own buffer of a sink under an
//! uncontended lock; the writer swaps full buffers for empty ones and writes
//! them. A buffer that is full drops lines and counts them: a slow disk never
//! stops a request.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time a line stays in a buffer.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Buffered bytes that wake the writer at once.
const WAKE_AT: usize = 64 * 1024;
/// Buffered bytes beyond which lines are dropped.
const MAX_BUFFERED: usize = 512 * 1024;
/// A buffer larger than this is freed after it was written.
const KEEP_BUFFER: usize = 64 * 1024;

/// One worker's buffer of one sink.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    lines: Mutex<Vec<u8>>,
    dropped: AtomicU64,
}

/// A file with its workers' buffers.
#[derive(Debug)]
struct Output {
    path: Box<str>,
    file: Mutex<File>,
    buffers: Mutex<Vec<Arc<Buffer>>>,
}

/// An open access log file; equal paths share one.
#[derive(Clone, Debug)]
pub(crate) struct Sink(Arc<Output>);

impl Sink {
    /// Identifies the sink in a worker's own table.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// A buffer for one more worker.
    pub(crate) fn buffer(&self) -> Arc<Buffer> {
        let buffer = Arc::new(Buffer::default());
        lock(&self.0.buffers).push(buffer.clone());
        buffer
    }
}

/// What workers and the writer thread share.
#[derive(Debug, Default)]
struct Shared {
    outputs: Mutex<Vec<Weak<Output>>>,
    pending: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Some buffer has lines.
    pending: bool,
    /// Some buffer is so full that waiting longer would drop lines.
    urgent: bool,
    stop: bool,
}

/// Opens sinks and owns the writer thread.
#[derive(Debug, Default)]
pub(crate) struct WriterPool {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A worker's handle to wake the writer.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Shared>);

impl WriterPool {
    /// Opens `path` for appending, or returns the sink already open on it.
    /// The writer thread starts with the first sink.
    pub(crate) fn open(&self, path: &str) -> std::io::Result<Sink> {
        let mut outputs = lock(&self.shared.outputs);
        outputs.retain(|output| output.strong_count() > 0);
        if let Some(open) =
            outputs.iter().filter_map(Weak::upgrade).find(|output| &*output.path == path)
        {
            return Ok(Sink(open));
        }
        let output = Arc::new(Output {
            path: path.into(),
            file: Mutex::new(open_file(path)?),
            buffers: Mutex::default(),
        });
        outputs.push(Arc::downgrade(&output));
        drop(outputs);
        self.start();
        Ok(Sink(output))
    }

    fn start(&self) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new()
                .name("access-log".into())
                .stack_size(64 * 1024)
                .spawn(move || run(&shared));
            match spawned {
                Ok(handle) => *thread = Some(handle),
                Err(error) => tracing::error!(%error, "access log writer cannot start"),
            }
        }
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Lines dropped so far because a buffer was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
            + self.outputs().iter().map(|output| output.dropped()).sum::<u64>()
    }

    fn outputs(&self) -> Vec<Arc<Output>> {
        self.shared.live_outputs()
    }

    /// Writes everything that is buffered now, on the calling thread.
    pub(crate) fn flush(&self) {
        for output in self.outputs() {
            output.flush(&self.shared.dropped);
        }
    }

    /// Opens every file anew, after log rotation moved the old ones.
    pub(crate) fn reopen(&self) {
        for output in self.outputs() {
            match open_file(&output.path) {
                Ok(file) => *lock(&output.file) = file,
                Err(error) => {
                    tracing::warn!(path = %output.path, %error, "access log not reopened");
                }
            }
        }
    }
}

impl Drop for WriterPool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // The thread only ends by itself; a panic in it was reported there.
            drop(thread.join());
        }
        self.flush();
    }
}

impl Waker {
    /// Appends one line, written by `write`, to a worker's buffer.
    pub(crate) fn append(&self, buffer: &Buffer, write: impl FnOnce(&mut Vec<u8>)) {
        let mut lines = lock(&buffer.lines);
        if lines.len() >= MAX_BUFFERED {
            buffer.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = lines.len();
        write(&mut lines);
        let after = lines.len();
        drop(lines);
        let full = before < WAKE_AT && after >= WAKE_AT;
        // The flag keeps all but the first line of a flush off the condvar.
        if full || !self.0.pending.swap(true, Ordering::AcqRel) {
            let mut state = lock(&self.0.state);
            state.pending = true;
            state.urgent |= full;
            drop(state);
            self.0.wake.notify_one();
        }
    }
}

impl Shared {
    fn live_outputs(&self) -> Vec<Arc<Output>> {
        lock(&self.outputs).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Output {
    fn dropped(&self) -> u64 {
        lock(&self.buffers).iter().map(|buffer| buffer.dropped.load(Ordering::Relaxed)).sum()
    }

    fn flush(&self, dropped: &AtomicU64) {
        let mut taken = Vec::new();
        let buffers: Vec<_> = lock(&self.buffers).clone();
        for buffer in &buffers {
            std::mem::swap(&mut *lock(&buffer.lines), &mut taken);
            if !taken.is_empty() {
                let written = lock(&self.file).write_all(&taken);
                if let Err(error) = written {
                    tracing::debug!(path = %self.path, %error, "access log lines lost");
                }
            }
            taken.clear();
            if taken.capacity() > KEEP_BUFFER {
                taken = Vec::new();
            }
        }
        drop(buffers);
        // Buffers of workers that have ended are held by nobody else.
        lock(&self.buffers).retain(|buffer| {
            let held = Arc::strong_count(buffer) > 1 || !lock(&buffer.lines).is_empty();
            if !held {
                dropped.fetch_add(buffer.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            held
        });
    }
}

fn run(shared: &Shared) {
    loop {
        let mut state = lock(&shared.state);
        while !state.pending && !state.stop {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let deadline = Instant::now() + FLUSH_EVERY;
        while !state.urgent && !state.stop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = shared.wake.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.pending = false;
        state.urgent = false;
        let stop = state.stop;
        drop(state);
        // Cleared before the swap: a line appended meanwhile sets it again.
        shared.pending.store(false, Ordering::Release);
        for output in shared.live_outputs() {
            output.flush(&shared.dropped);
        }
        if stop {
            return;
        }
    }
}

fn open_file(path: &str) -> std::io::Result<File> {
    // Opening /dev/stdout fails when it is a socket, so the descriptor is
    // duplicated instead.
    use std::os::fd::AsFd;
    let owned = match path {
        "/dev/stdout" => std::io::stdout().as_fd().try_clone_to_owned()?,
        "/dev/stderr" => std::io::stderr().as_fd().try_clone_to_owned()?,
        _ => return File::options().create(true).append(true).open(path),
    };
    Ok(File::from(owned))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held half-way, so the content is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
