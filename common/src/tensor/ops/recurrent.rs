//! The gated recurrent unit over whole sequences as one node of the graph.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};

use super::fused::{fusable, fused};
use super::kernel::simd;
use super::math::sigmoid;
use super::product::{Matrix, Start, Threads, gemm};

/// What a forward pass keeps for the backward pass, `[steps · batch, width]` each.
struct Kept {
    reset: Vec<f32>,
    update: Vec<f32>,
    candidate: Vec<f32>,
    /// The recurrent part of the candidate before the reset gate.
    recurrent: Vec<f32>,
}

/// Hidden states `[steps, batch, width]` of a GRU ([Cho et al. 2014](https://arxiv.org/abs/1406.1078))
/// that starts at zero, in torch's form and gate order (reset, update, candidate):
///
/// ```text
/// r = σ(x_r + W_r h + b_r)   z = σ(x_z + W_z h + b_z)   n = tanh(x_n + r (W_n h + b_n))
/// h' = (1 - z) n + z h
/// ```
///
/// `inputs` `[steps, batch, 3 · width]` are the inputs after their linear map and bias, `weight` is
/// `[3 · width, width]`, `bias` `[3 · width]`; f32 on the CPU.
pub fn gru(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (steps, batch, gates) = inputs.dims3()?;
    let width = gates / 3;
    if weight.dims() != [gates, width] || bias.dims() != [gates] || gates != 3 * width {
        bail!(
            "gru: weight {:?} and bias {:?} for inputs {:?}, expected [3w, w] and [3w]",
            weight.dims(),
            bias.dims(),
            inputs.dims()
        );
    }
    if !fusable(&[inputs, weight, bias]) {
        return gru_compose(inputs, weight, bias);
    }
    let sizes = Sizes { steps, batch, width };
    let kept: Arc<OnceLock<Kept>> = Arc::default();
    let keep = kept.clone();
    fused(
        "gru",
        [inputs, weight, bias],
        (steps, batch, width),
        move |[x, weight, bias]| {
            let (hidden, kept) = forward(x, weight, bias, sizes);
            let _ = keep.set(kept);
            hidden
        },
        move |[_, weight, _], hidden, g, wanted| {
            let Some(kept) = kept.get() else { return [None, None, None] };
            let (dx, dw, db) = backward(weight, hidden, g, kept, sizes);
            [wanted[0].then_some(dx), wanted[1].then_some(dw), wanted[2].then_some(db)]
        },
    )
}

#[derive(Clone, Copy)]
struct Sizes {
    steps: usize,
    batch: usize,
    width: usize,
}

fn forward(x: &[f32], weight: &[f32], bias: &[f32], sizes: Sizes) -> (Vec<f32>, Kept) {
    let Sizes { steps, batch, width } = sizes;
    let cells = batch * width;
    let zeros = || vec![0f32; steps * cells];
    let mut hidden = zeros();
    let mut kept = Kept { reset: zeros(), update: zeros(), candidate: zeros(), recurrent: zeros() };
    let mut sums = vec![0f32; 3 * cells];
    let start = vec![0f32; cells];
    for step in 0..steps {
        let (past, now) = hidden.split_at_mut(step * cells);
        let before = if step == 0 { &start } else { &past[(step - 1) * cells..] };
        let (h, w) = (Matrix::new(before, batch, width), Matrix::new(weight, 3 * width, width));
        gemm(&mut sums, 3 * width, h, w.t(), 1.0, Start::Row(bias), Threads::Pool);
        for row in 0..batch {
            let gates = (step * batch + row) * 3 * width;
            let at = step * cells + row * width..step * cells + (row + 1) * width;
            cell(
                &x[gates..gates + 3 * width],
                &sums[row * 3 * width..(row + 1) * 3 * width],
                &before[row * width..(row + 1) * width],
                [&mut kept.reset[at.clone()], &mut kept.update[at.clone()]],
                [&mut kept.candidate[at.clone()], &mut kept.recurrent[at]],
                &mut now[row * width..(row + 1) * width],
            );
        }
    }
    (hidden, kept)
}

simd! {
    fn cell(
        x: &[f32],
        sums: &[f32],
        before: &[f32],
        gates: [&mut [f32]; 2],
        inner: [&mut [f32]; 2],
        out: &mut [f32],
    ) {
        let width = out.len();
        let [reset, update] = gates;
        let [candidate, recurrent] = inner;
        for i in 0..width {
            let r = sigmoid(x[i] + sums[i]);
            let z = sigmoid(x[width + i] + sums[width + i]);
            let inner = sums[2 * width + i];
            // tanh u = 2 σ(2u) - 1
            let n = 2.0 * sigmoid(2.0 * (x[2 * width + i] + r * inner)) - 1.0;
            (reset[i], update[i], candidate[i], recurrent[i]) = (r, z, n, inner);
            out[i] = (1.0 - z) * n + z * before[i];
        }
    }
}

/// Backpropagation through time: gradients of inputs, weight and bias.
fn backward(
    weight: &[f32],
    hidden: &[f32],
    g: &[f32],
    kept: &Kept,
    sizes: Sizes,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Sizes { steps, batch, width } = sizes;
    let (cells, gates) = (batch * width, 3 * width);
    let mut dx = vec![0f32; steps * batch * gates];
    // gradient of the recurrent sums: that of the inputs except for the candidate's reset gate
    let mut dsums = vec![0f32; steps * batch * gates];
    let mut carried = vec![0f32; cells];
    let start = vec![0f32; cells];
    for step in (0..steps).rev() {
        let before = if step == 0 { &start } else { &hidden[(step - 1) * cells..step * cells] };
        for row in 0..batch {
            let at = step * cells + row * width..step * cells + (row + 1) * width;
            let wide = (step * batch + row) * gates..(step * batch + row + 1) * gates;
            cell_backward(
                &g[at.clone()],
                &before[row * width..(row + 1) * width],
                [&kept.reset[at.clone()], &kept.update[at.clone()]],
                [&kept.candidate[at.clone()], &kept.recurrent[at]],
                &mut carried[row * width..(row + 1) * width],
                &mut dx[wide.clone()],
                &mut dsums[wide],
            );
        }
        let part = &dsums[step * batch * gates..(step + 1) * batch * gates];
        let (d, w) = (Matrix::new(part, batch, gates), Matrix::new(weight, gates, width));
        gemm(&mut carried, width, d, w, 1.0, Start::Output, Threads::Pool);
    }
    let mut dw = vec![0f32; gates * width];
    if steps > 1 {
        let rows = (steps - 1) * batch;
        let d = Matrix::new(&dsums[batch * gates..], rows, gates);
        let h = Matrix::new(&hidden[..rows * width], rows, width);
        gemm(&mut dw, width, d.t(), h, 1.0, Start::Zero, Threads::Pool);
    }
    let mut db = vec![0f32; gates];
    for row in dsums.chunks_exact(gates.max(1)) {
        super::kernel::add(&mut db, row);
    }
    (dx, dw, db)
}

simd! {
    /// `carried` holds the gradient from later steps and gets the direct part for the step before.
    fn cell_backward(
        g: &[f32],
        before: &[f32],
        gates: [&[f32]; 2],
        inner: [&[f32]; 2],
        carried: &mut [f32],
        dx: &mut [f32],
        dsums: &mut [f32],
    ) {
        let width = g.len();
        for i in 0..width {
            let (r, z, n) = (gates[0][i], gates[1][i], inner[0][i]);
            let dh = g[i] + carried[i];
            let dn = dh * (1.0 - z) * (1.0 - n * n);
            let dr = dn * inner[1][i] * r * (1.0 - r);
            let dz = dh * (before[i] - n) * z * (1.0 - z);
            (dx[i], dx[width + i], dx[2 * width + i]) = (dr, dz, dn);
            (dsums[i], dsums[width + i], dsums[2 * width + i]) = (dr, dz, dn * r);
            carried[i] = dh * z;
        }
    }
}

/// [`gru`] from candle's operators.
pub fn gru_compose(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (steps, batch, gates) = inputs.dims3()?;
    let width = gates / 3;
    let sigmoid = |x: Tensor| (x.neg()?.exp()? + 1.0)?.recip();
    let mut hidden = inputs.narrow(2, 0, width)?.narrow(0, 0, 1)?.squeeze(0)?.zeros_like()?;
    let mut all = Vec::with_capacity(steps);
    for step in 0..steps {
        let x = inputs.get(step)?;
        let sums = hidden.matmul(&weight.t()?)?.broadcast_add(bias)?;
        let part = |t: &Tensor, gate: usize| t.narrow(1, gate * width, width);
        let r = sigmoid((part(&x, 0)? + part(&sums, 0)?)?)?;
        let z = sigmoid((part(&x, 1)? + part(&sums, 1)?)?)?;
        let n = (part(&x, 2)? + (r * part(&sums, 2)?)?)?.tanh()?;
        hidden = ((&n - (&z * &n)?)? + (z * hidden)?)?;
        all.push(hidden.clone());
    }
    if all.is_empty() {
        return Tensor::zeros((0, batch, width), inputs.dtype(), inputs.device());
    }
    Tensor::stack(&all, 0)
}
