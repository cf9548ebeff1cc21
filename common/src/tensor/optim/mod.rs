//! Optimisers: [`AdamW`] with readable state, gradient sums and clipping, learning-rate schedules,
//! moving averages, data parallelism over cores.

mod adamw;
mod gradients;
mod schedule;
mod workers;

pub use adamw::{AdamW, AdamWOptions};
pub use gradients::Gradients;
pub use schedule::{Ema, Schedule, ScheduleShape};
pub use workers::Workers;
