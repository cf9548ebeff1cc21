//! Data parallelism: one worker per core, each with a rayon pool of one thread.

use std::sync::Mutex;

use candle_core::{DType, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Gradients;
use crate::nn::Parameters;
use crate::{Error, Result};

/// The graph walk of a backward pass is recursive: deep models need more than the default 2 MiB.
const STACK: usize = 16 << 20;

/// Threads that compute the gradients of slices of a batch. One model pass per core scales better
/// than each operator over all cores: nothing waits between operators.
#[derive(Debug)]
pub struct Workers {
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// `threads` workers, at least one.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = |_| {
            ThreadPoolBuilder::new()
                .num_threads(1)
                .stack_size(STACK)
                .build()
                .map_err(|error| Error::Temporary(format!("no worker thread: {error}")))
        };
        Ok(Self { pools: (0..threads.max(1)).map(pool).collect::<Result<_>>()? })
    }

    /// Number of workers.
    pub fn threads(&self) -> usize {
        self.pools.len()
    }

    /// Runs `work(slice)` for every slice, each on one thread, and returns the results in order.
    pub fn map<T: Send>(
        &self,
        slices: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let results: Vec<Mutex<Option<Result<T>>>> =
            (0..slices).map(|_| Mutex::new(None)).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for pool in &self.pools {
                scope.spawn(|| {
                    pool.install(|| {
                        loop {
                            let slice = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            let Some(result) = results.get(slice) else { break };
                            let done = work(slice);
                            if let Ok(mut result) = result.lock() {
                                *result = Some(done);
                            }
                        }
                    });
                });
            }
        });
        let taken = |result: Mutex<Option<Result<T>>>| match result.into_inner() {
            Ok(Some(result)) => result,
            _ => Err(Error::Bug("a worker left a slice undone".into())),
        };
        results.into_iter().map(taken).collect()
    }

    /// Sum of the losses and of the gradients of `loss(slice)` for `slice` in `0..slices`.
    ///
    /// Each loss is its slice's share of the total (a mean over the whole batch divides by the whole
    /// batch). Slices are added in order, so the result depends on their number and not on the
    /// threads: choose `slices` once, a multiple of the cores.
    pub fn gradients(
        &self,
        parameters: &Parameters,
        slices: usize,
        loss: impl Fn(usize) -> Result<Tensor> + Sync,
    ) -> Result<(f64, Gradients)> {
        let parts = self.map(slices, |slice| {
            let loss = loss(slice)?;
            let gradients = Gradients::of(&loss, parameters)?;
            Ok((f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?), gradients))
        })?;
        let total = parts.iter().map(|(loss, _)| loss).sum();
        let gradients: Vec<Gradients> = parts.into_iter().map(|(_, gradients)| gradients).collect();
        Ok((total, Gradients::sum(&gradients)?))
    }
}
