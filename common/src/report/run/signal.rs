//! SIGINT and SIGTERM ask the program to stop; a second one stops it at once.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::{Error, Result};

static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The signal that asked this process to stop (2 or 15), if one did. Long loops look here between
/// steps, save their state and return [`Error::Interrupted`].
pub fn interrupted() -> Option<i32> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// [`Error::Interrupted`] once a signal came, for loops that write `check_interrupt()?`.
pub fn check_interrupt() -> Result<()> {
    interrupted().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
}

/// Installs the handler; later calls change nothing.
#[cfg(unix)]
#[allow(unsafe_code)]
pub(crate) fn catch() {
    extern "C" fn remember(signal: libc::c_int) {
        if SIGNAL.swap(signal, Ordering::Relaxed) != 0 {
            // SAFETY: _exit is async-signal-safe.
            unsafe { libc::_exit(128 + signal) };
        }
    }
    let handler = remember as extern "C" fn(libc::c_int);
    // SAFETY: the handler only touches an atomic and calls _exit, both async-signal-safe; the
    // action is fully initialised, and SA_RESTART keeps blocking calls of libraries whole.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
        // A closed pipe (`| head`) ends the program quietly instead of by a panic of println.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Other systems keep their default: the process ends at once.
#[cfg(not(unix))]
pub(crate) fn catch() {}
