//! Linear maps with bias and activation as one matrix product each way; column sums; embedding.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Result, Shape, Tensor, bail};

use super::activation::{Activation, relu_in_place};
use super::fused::{fusable, fused};
use super::kernel::{add, filled, for_rows, map_rows, map_rows_sum};
use super::product::{Matrix, Start, Threads, gemm};

/// `x · weightᵀ + bias`: `x` `[…, inputs]`, `weight` `[outputs, inputs]` (torch's layout), `bias`
/// `[outputs]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_activation(x, weight, bias, None)
}

/// [`linear`] followed by an activation; one node, so the sum before the activation is neither
/// copied nor given a gradient buffer of its own.
pub fn linear_activation(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    linear_layout(x, weight, bias, activation, WeightLayout::OutIn)
}

/// Order of a weight's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[outputs, inputs]`: torch's `nn.Linear`.
    OutIn,
    /// `[inputs, outputs]`: GPT-2's `Conv1D`.
    InOut,
}

impl WeightLayout {
    /// The weight as `[outputs, inputs]`.
    fn matrix(self, weight: &[f32], outputs: usize, inputs: usize) -> Matrix<'_> {
        match self {
            Self::OutIn => Matrix::new(weight, outputs, inputs),
            Self::InOut => Matrix::new(weight, inputs, outputs).t(),
        }
    }
}

/// [`linear_activation`] with a weight of either layout; nothing is transposed.
pub fn linear_layout(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
    layout: WeightLayout,
) -> Result<Tensor> {
    let inputs = x.dim(D::Minus1)?;
    let (outputs, weight_inputs) = match (weight.dims2()?, layout) {
        (dims, WeightLayout::OutIn) => dims,
        ((inputs, outputs), WeightLayout::InOut) => (outputs, inputs),
    };
    if weight_inputs != inputs || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!(
            "linear: weight {:?} ({layout:?}) and bias {:?} for rows of {inputs}",
            weight.dims(),
            bias.map(|bias| bias.dims().to_vec())
        );
    }
    if !fusable(&[x, weight]) || !bias.is_none_or(|bias| fusable(&[bias])) {
        let out = match layout {
            WeightLayout::OutIn => linear_compose(x, weight, bias)?,
            WeightLayout::InOut => linear_compose(x, &weight.t()?, bias)?,
        };
        return activation.map_or(Ok(out.clone()), |activation| activation.compose(&out));
    }
    let mut shape = x.dims().to_vec();
    shape.pop();
    let rows: usize = shape.iter().product();
    shape.push(outputs);
    // the sums before the activation, kept for its slope
    let kept: Arc<OnceLock<Vec<f32>>> = Arc::default();
    let keep = kept.clone();
    let forward = move |x: &[f32], weight: &[f32], bias: &[f32]| {
        let sums = filled(rows * outputs, |out| {
            if inputs == 0 && bias.is_empty() {
                return out.fill(0.0);
            }
            let start = if bias.is_empty() { Start::Zero } else { Start::Row(bias) };
            let weight = layout.matrix(weight, outputs, inputs);
            let x = Matrix::new(x, rows, inputs);
            gemm(out, outputs, x, weight.t(), 1.0, start, Threads::Pool);
        });
        match activation {
            None => sums,
            // its slope can be read from its value
            Some(Activation::Relu) => {
                let mut out = sums;
                let n = out.len();
                for_rows(n, 1, &mut out, 1, |_, out| relu_in_place(out));
                out
            }
            Some(activation) => {
                let n = sums.len();
                let out = map_rows(n, 1, 1, |at, out| activation.values(&sums[at], out));
                let _ = keep.set(sums);
                out
            }
        }
    };
    let backward = move |[x, weight]: [&[f32]; 2], out: &[f32], g: &[f32], wanted: [bool; 3]| {
        let slopes;
        let g = match activation {
            None => g,
            Some(activation) => {
                let sums = kept.get().map_or(out, Vec::as_slice);
                slopes = map_rows(sums.len(), 1, 1, |at, out| {
                    activation.gradients(&sums[at.clone()], &g[at], out);
                });
                &slopes
            }
        };
        let product = |rows: usize, cols: usize, left: Matrix<'_>, right: Matrix<'_>| {
            filled(rows * cols, |out| gemm(out, cols, left, right, 1.0, Start::Zero, Threads::Pool))
        };
        let gradient = Matrix::new(g, rows, outputs);
        [
            wanted[0]
                .then(|| product(rows, inputs, gradient, layout.matrix(weight, outputs, inputs))),
            wanted[1].then(|| {
                let x = Matrix::new(x, rows, inputs);
                match layout {
                    WeightLayout::OutIn => product(outputs, inputs, gradient.t(), x),
                    WeightLayout::InOut => product(inputs, outputs, x.t(), gradient),
                }
            }),
            wanted[2].then(|| column_sums(g, rows, outputs)),
        ]
    };
    let shape = Shape::from(shape);
    match bias {
        Some(bias) => fused(
            "linear",
            [x, weight, bias],
            shape,
            move |[x, weight, bias]| forward(x, weight, bias),
            move |[x, weight, _], out, g, wanted| backward([x, weight], out, g, wanted),
        ),
        None => fused(
            "linear",
            [x, weight],
            shape,
            move |[x, weight]| forward(x, weight, &[]),
            move |[x, weight], out, g, [wants_x, wants_weight]| {
                let [dx, dw, _] = backward([x, weight], out, g, [wants_x, wants_weight, false]);
                [dx, dw]
            },
        ),
    }
}

/// [`linear`] from candle's operators.
pub fn linear_compose(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let inputs = x.dim(D::Minus1)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    let rows: usize = shape.iter().product();
    shape.push(weight.dim(0)?);
    let out = x.reshape((rows, inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
    match bias {
        Some(bias) => out.broadcast_add(bias),
        None => Ok(out),
    }
}

/// Sums of the columns of `rows × cols` values.
pub(super) fn column_sums(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    map_rows_sum(rows, cols, 0, cols, |range: Range<usize>, _, sums| {
        for row in range {
            add(sums, &x[row * cols..][..cols]);
        }
    })
    .1
}

/// Sum over axis 0: `[rows, …]` → `[…]`; zeros for no rows.
pub fn column_sum(x: &Tensor) -> Result<Tensor> {
    let (rows, shape) = match x.dims() {
        [] => bail!("column_sum: a scalar has no axis 0"),
        [rows, shape @ ..] => (*rows, shape.to_vec()),
    };
    if !fusable(&[x]) {
        return x.sum(0);
    }
    let cols: usize = shape.iter().product();
    fused(
        "column_sum",
        [x],
        shape,
        move |[x]| column_sums(x, rows, cols),
        move |_, _, g, _| {
            [Some(map_rows(rows, cols, cols, |range: Range<usize>, out| {
                for (_, out) in range.zip(out.chunks_exact_mut(cols)) {
                    out.copy_from_slice(g);
                }
            }))]
        },
    )
}

/// Rows of `weight` `[vocabulary, width]` for `ids` of any shape and integer type; the result has
/// the ids' shape with `width` appended. An id outside the vocabulary is an error.
pub fn embedding(weight: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (vocabulary, width) = weight.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    let index = indices(ids, vocabulary, "embedding")?;
    if !fusable(&[weight]) {
        let ids = Tensor::from_vec(index.to_vec(), index.len(), weight.device())?;
        return weight.index_select(&ids, 0)?.reshape(shape);
    }
    let for_backward = index.clone();
    fused(
        "embedding",
        [weight],
        shape,
        move |[weight]| {
            map_rows(index.len(), width, width, |range: Range<usize>, out| {
                for (&id, out) in index[range].iter().zip(out.chunks_exact_mut(width.max(1))) {
                    out.copy_from_slice(&weight[id as usize * width..][..width]);
                }
            })
        },
        move |_, _, g, _| {
            let mut out = vec![0f32; vocabulary * width];
            for (&id, g) in for_backward.iter().zip(g.chunks_exact(width.max(1))) {
                add(&mut out[id as usize * width..][..width], g);
            }
            [Some(out)]
        },
    )
}

/// Ids as `u32`, all below `size`.
pub(super) fn indices(ids: &Tensor, size: usize, what: &str) -> Result<Arc<[u32]>> {
    if !ids.dtype().is_int() {
        bail!("{what}: ids are {:?}; they must be integers", ids.dtype());
    }
    let ids = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    ids.into_iter()
        .map(|id| match u32::try_from(id) {
            Ok(index) if (index as usize) < size => Ok(index),
            _ => bail!("{what}: id {id} is outside 0..{size}"),
        })
        .collect()
}
