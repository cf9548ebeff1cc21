//! Process-wide switches that every binary, test and bench sets first.
//!
//! candle on CPU runs about twice as fast with three of them: gemm's AVX-512 kernels (a cargo
//! feature of this crate's `gemm` dependency), an allocator that keeps its pages, and no second
//! thread pool beside rayon's.

use std::fmt;
use std::sync::OnceLock;

/// What [`init`] found and set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Best instruction set that our kernels and gemm's use here.
    pub kernels: &'static str,
    /// CPU model name.
    pub cpu: String,
    /// Threads of the global rayon pool.
    pub threads: usize,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} kernels, {} threads", self.cpu, self.kernels, self.threads)
    }
}

/// Sets the switches once and returns what is in use. `threads` = `None` keeps rayon's default
/// (`RAYON_NUM_THREADS` or the core count); later calls change nothing.
pub fn init(threads: Option<usize>) -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        keep_freed_pages();
        single_candle_thread();
        if let Some(threads) = threads {
            // Fails only when somebody used rayon before; then that pool stands.
            if rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().is_err() {
                tracing::debug!("the rayon pool was started before runtime::init");
            }
        }
        Runtime { kernels: kernels(), cpu: cpu_name(), threads: rayon::current_num_threads() }
    })
}

/// Best instruction set of this machine among those with kernels.
pub fn kernels() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "scalar" }
}

/// CPU model name as the operating system gives it, or the architecture.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Highest resident memory of this process so far, in MiB (0 where unknown).
pub fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .map_or(0.0, |kib: f64| kib / 1024.0)
}

/// candle allocates a buffer per operation; returning each to the system costs a third of the
/// time of a training step in page faults.
#[allow(unsafe_code)]
fn keep_freed_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// candle's own pool spins beside rayon's and takes a core from gemm.
#[allow(unsafe_code)]
fn single_candle_thread() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: called once, before this process starts threads of its own.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_idempotent_and_names_what_is_in_use() {
        let first = init(None);
        assert_eq!(first, init(Some(64)));
        assert!(first.threads >= 1);
        assert!(!first.cpu.is_empty());
        assert!(first.to_string().contains(kernels()));
    }

    #[test]
    fn peak_memory_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss_mb() > 1.0);
        }
    }
}
