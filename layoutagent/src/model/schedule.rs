//! The cosine noise schedule and the coefficients of a reverse step.

/// Per-step constants of a diffusion of T steps, indexed by t = 0..T.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// β_t
    pub beta: Vec<f32>,
    /// ᾱ_t
    pub alpha_bar: Vec<f32>,
    /// √ᾱ_t
    pub signal: Vec<f32>,
    /// √(1 − ᾱ_t)
    pub noise: Vec<f32>,
    /// Posterior variance.
    pub variance: Vec<f32>,
    /// √(1/ᾱ_t), the weight of v_t in x̂₀.
    pub from_pose: Vec<f32>,
    /// √(1/ᾱ_t − 1), the weight of ε̂ in x̂₀.
    pub from_noise: Vec<f32>,
    /// Weight of x̂₀ in the posterior mean.
    pub mean_clean: Vec<f32>,
    /// Weight of v_t in the posterior mean.
    pub mean_pose: Vec<f32>,
}

impl Schedule {
    /// Cosine schedule with s = 0.008 and β clipped at 0.999, computed in f64.
    pub fn cosine(steps: usize) -> Self {
        let curve = |t: usize| {
            let x = t as f64 / steps as f64;
            ((x + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
        };
        let mut schedule = Self {
            beta: Vec::with_capacity(steps),
            alpha_bar: Vec::with_capacity(steps),
            signal: Vec::with_capacity(steps),
            noise: Vec::with_capacity(steps),
            variance: Vec::with_capacity(steps),
            from_pose: Vec::with_capacity(steps),
            from_noise: Vec::with_capacity(steps),
            mean_clean: Vec::with_capacity(steps),
            mean_pose: Vec::with_capacity(steps),
        };
        let mut previous = 1.0f64;
        for t in 0..steps {
            let beta = (1.0 - curve(t + 1) / curve(t)).clamp(0.0, 0.999);
            let bar = previous * (1.0 - beta);
            schedule.beta.push(beta as f32);
            schedule.alpha_bar.push(bar as f32);
            schedule.signal.push(bar.sqrt() as f32);
            schedule.noise.push((1.0 - bar).sqrt() as f32);
            schedule.variance.push((beta * (1.0 - previous) / (1.0 - bar)) as f32);
            schedule.from_pose.push((1.0 / bar).sqrt() as f32);
            schedule.from_noise.push((1.0 / bar - 1.0).sqrt() as f32);
            schedule.mean_clean.push((beta * previous.sqrt() / (1.0 - bar)) as f32);
            schedule.mean_pose.push(((1.0 - previous) * (1.0 - beta).sqrt() / (1.0 - bar)) as f32);
            previous = bar;
        }
        schedule
    }

    /// Number of steps T.
    pub fn steps(&self) -> usize {
        self.beta.len()
    }
}
