//! Eq. 5: the relation networks' outputs as an energy, and the noise as its gradient. Networks that
//! are trained so (`train.energy`) tell how probable a layout is, and Metropolis steps can be
//! accepted by that.

use candle_core::{Tensor, Var};
use common::{Error, Result, ops};

use super::denoiser::{Batch, Denoiser};

/// ‖out_c − v_args‖² of every relation: two rows an edge, one for each of its nodes, `[2 edges, 2]`.
fn squares(model: &Denoiser, batch: &Batch, pose: &Tensor) -> Result<Tensor> {
    let away = (model.outputs(batch, pose)? - ops::embedding(pose, &batch.targets)?)?;
    Ok(away.sqr()?.broadcast_mul(&batch.real)?)
}

/// Eq. 5: E(v) = Σ_c ‖out_c − v_args‖² over all graphs of the batch, a scalar. `pose` is v,
/// `[nodes, 2]`.
///
/// # Errors
/// Tensor operations only.
pub fn energy(model: &Denoiser, batch: &Batch, pose: &Tensor) -> Result<Tensor> {
    Ok(squares(model, batch, pose)?.sum_all()?)
}

/// Eq. 5: ε̂ = ∇_v E, `[nodes, 2]`, 0 for masked nodes, without a gradient of its own; and the energy
/// of each graph.
///
/// # Errors
/// Tensor operations only.
pub fn noise(model: &Denoiser, batch: &Batch, pose: &Tensor) -> Result<(Tensor, Vec<f64>)> {
    if batch.nodes() == 0 {
        return Ok((pose.zeros_like()?, Vec::new()));
    }
    let pose = Var::from_tensor(&pose.detach())?;
    let squares = squares(model, batch, &pose)?;
    let mut gradients = squares.sum_all()?.backward()?;
    let gradient = gradients
        .remove(&pose)
        .ok_or_else(|| Error::Bug("the energy of a layout does not depend on its poses".into()))?;
    let mut energies = vec![0.0; batch.graphs()];
    let halves = squares.detach().sum(1)?.to_vec1::<f32>()?;
    for (&graph, halves) in batch.graph_of_edge.iter().zip(halves.chunks_exact(2)) {
        energies[graph as usize] += f64::from(halves[0]) + f64::from(halves[1]);
    }
    Ok((gradient.broadcast_mul(&batch.free)?, energies))
}

/// How far the poses are moved for a difference, at most.
const STEP: f64 = 0.02;

/// Eq. 4 with the noise of Eq. 5: mean squared error over all nodes and components.
///
/// Its gradient needs the derivative of ∇_v E by the weights θ. With u = ∂L/∂ε̂ that is the derivative of
/// ∇_θ E along u, taken as a central difference: ∇_θ (E(v + h u) − E(v − h u)) / 2h.
///
/// # Errors
/// Tensor operations only.
pub fn loss(model: &Denoiser, batch: &Batch, pose: &Tensor, noise: &Tensor) -> Result<Tensor> {
    let (found, _) = self::noise(model, batch, pose)?;
    let value = ops::mean_squared_error(&found, noise)?.detach();
    let slope = ((found - noise)? * (2.0 / noise.elem_count() as f64))?;
    let slope = slope.broadcast_mul(&batch.free)?;
    let steepest = f64::from(slope.abs()?.max_all()?.to_scalar::<f32>()?);
    let h = STEP / steepest.max(1e-20);
    let step = (slope * h)?;
    let ahead = energy(model, batch, &(pose + &step)?)?;
    let behind = energy(model, batch, &(pose - &step)?)?;
    let along = ((ahead - behind)? / (2.0 * h))?;
    // the value is the loss, the gradient that of `along`
    Ok((value + (&along - along.detach())?)?)
}
