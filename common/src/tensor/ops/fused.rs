//! A function of up to three f32 tensors with a hand-written gradient, as a node of candle's graph.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, StorageRef,
    Tensor, TensorId, bail,
};

use super::kernel::add;

thread_local! {
    /// Gradients of variables during a [`backward`] of this thread.
    static LEAVES: RefCell<Option<HashMap<TensorId, Vec<f32>>>> = const { RefCell::new(None) };
}

/// Gradients of a scalar: candle's, and those of variables that fused operators put aside.
pub(crate) struct Backward {
    store: GradStore,
    leaves: HashMap<TensorId, Vec<f32>>,
}

/// `loss.backward()`, without candle's zero-filled buffer and addition for every use of a variable:
/// fused operators hand their variables' gradients over directly.
pub(crate) fn backward(loss: &Tensor) -> Result<Backward> {
    /// A panic must not leave the map behind: it would swallow the gradients of later passes.
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            LEAVES.set(None);
        }
    }
    LEAVES.set(Some(HashMap::new()));
    let _running = Running;
    let store = loss.backward()?;
    Ok(Backward { store, leaves: LEAVES.take().unwrap_or_default() })
}

impl Backward {
    /// Takes out the gradient of `variable`, contiguous; `None` if the loss does not reach it.
    pub(crate) fn remove(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        let store =
            self.store.remove(variable).map(|gradient| gradient.contiguous()).transpose()?;
        let Some(leaf) = self.leaves.remove(&variable.id()) else { return Ok(store) };
        let leaf = Tensor::from_vec(leaf, variable.shape(), variable.device())?;
        Ok(Some(match store {
            Some(store) => (store + leaf)?,
            None => leaf,
        }))
    }
}

/// Adds `gradient` to what the running [`backward`] has for `variable`; gives it back where none runs.
fn put_aside(variable: &Tensor, gradient: Vec<f32>) -> Option<Vec<f32>> {
    LEAVES.with_borrow_mut(|leaves| {
        let Some(leaves) = leaves else { return Some(gradient) };
        match leaves.entry(variable.id()) {
            Entry::Occupied(mut sum) => add(sum.get_mut(), &gradient),
            Entry::Vacant(slot) => {
                slot.insert(gradient);
            }
        }
        None
    })
}

/// Whether the fused kernels can take these tensors: all f32 on the CPU.
pub(super) fn fusable(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// `forward` maps the inputs' values to the output's. `backward` maps inputs, output, the output's
/// gradient and which inputs want one to the inputs' gradients; it answers `Some` where wanted.
pub(super) struct Fused<F, B> {
    name: &'static str,
    shape: Shape,
    forward: F,
    backward: B,
}

/// Applies a fused function to `inputs` (contiguous f32 on the CPU); the output has `shape`.
pub(super) fn fused<const N: usize, F, B>(
    name: &'static str,
    inputs: [&Tensor; N],
    shape: impl Into<Shape>,
    forward: F,
    backward: B,
) -> Result<Tensor>
where
    F: Fn([&[f32]; N]) -> Vec<f32> + Send + Sync + 'static,
    B: Fn([&[f32]; N], &[f32], &[f32], [bool; N]) -> [Option<Vec<f32>>; N] + Send + Sync + 'static,
    Fused<F, B>: Apply<N>,
{
    Fused { name, shape: shape.into(), forward, backward }.apply(inputs)
}

/// Number of inputs → candle's trait for it.
pub(super) trait Apply<const N: usize> {
    fn apply(self, inputs: [&Tensor; N]) -> Result<Tensor>;
}

/// The values of a contiguous f32 tensor, held while they are read.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    pub(crate) fn get(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => slice(storage, self.layout),
            _ => bail!("fused operators take tensors on the CPU"),
        }
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("fused operators take f32, found {:?}", storage.as_slice_dtype());
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => {
            bail!("fused operators take contiguous tensors, found strides {:?}", layout.stride())
        }
    }
}

/// Name of a storage's type for messages.
trait StorageType {
    fn as_slice_dtype(&self) -> DType;
}

impl StorageType for CpuStorage {
    fn as_slice_dtype(&self) -> DType {
        candle_core::backend::BackendStorage::dtype(self)
    }
}

impl<F, B> Fused<F, B> {
    fn run<const N: usize>(&self, inputs: [&[f32]; N]) -> Result<(CpuStorage, Shape)>
    where
        F: Fn([&[f32]; N]) -> Vec<f32>,
    {
        let out = (self.forward)(inputs);
        if out.len() != self.shape.elem_count() {
            bail!("{}: {} values for shape {:?}", self.name, out.len(), self.shape);
        }
        Ok((CpuStorage::F32(out), self.shape.clone()))
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        B: Fn([&[f32]; N], &[f32], &[f32], [bool; N]) -> [Option<Vec<f32>>; N],
    {
        let gradient = gradient.contiguous()?;
        let (result, upstream) = (Values::of(result), Values::of(&gradient));
        let held = inputs.map(Values::of);
        let mut values: [&[f32]; N] = [&[]; N];
        for (value, held) in values.iter_mut().zip(&held) {
            *value = held.get()?;
        }
        let wanted = inputs.map(Tensor::track_op);
        let computed = (self.backward)(values, result.get()?, upstream.get()?, wanted);
        let mut gradients = [const { None }; N];
        for ((slot, values), input) in gradients.iter_mut().zip(computed).zip(inputs) {
            let values = values.and_then(|values| match input.is_variable() {
                true => put_aside(input, values),
                false => Some(values),
            });
            *slot = values
                .map(|values| Tensor::from_vec(values, input.shape(), input.device()))
                .transpose()?;
        }
        Ok(gradients)
    }
}

impl<F, B> CustomOp1 for Fused<F, B>
where
    F: Fn([&[f32]; 1]) -> Vec<f32>,
    B: Fn([&[f32]; 1], &[f32], &[f32], [bool; 1]) -> [Option<Vec<f32>>; 1],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run([slice(s, l)?])
    }

    fn bwd(&self, arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients([arg], res, grad)?;
        Ok(a)
    }
}

impl<F, B> CustomOp2 for Fused<F, B>
where
    F: Fn([&[f32]; 2]) -> Vec<f32>,
    B: Fn([&[f32]; 2], &[f32], &[f32], [bool; 2]) -> [Option<Vec<f32>>; 2],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run([slice(s1, l1)?, slice(s2, l2)?])
    }

    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients([arg1, arg2], res, grad)?;
        Ok((a, b))
    }
}

impl<F, B> CustomOp3 for Fused<F, B>
where
    F: Fn([&[f32]; 3]) -> Vec<f32>,
    B: Fn([&[f32]; 3], &[f32], &[f32], [bool; 3]) -> [Option<Vec<f32>>; 3],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run([slice(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?])
    }

    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        arg3: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients([arg1, arg2, arg3], res, grad)?;
        Ok((a, b, c))
    }
}

impl<F, B> Apply<1> for Fused<F, B>
where
    F: Fn([&[f32]; 1]) -> Vec<f32> + Send + Sync + 'static,
    B: Fn([&[f32]; 1], &[f32], &[f32], [bool; 1]) -> [Option<Vec<f32>>; 1] + Send + Sync + 'static,
{
    fn apply(self, [a]: [&Tensor; 1]) -> Result<Tensor> {
        a.contiguous()?.apply_op1(self)
    }
}

impl<F, B> Apply<2> for Fused<F, B>
where
    F: Fn([&[f32]; 2]) -> Vec<f32> + Send + Sync + 'static,
    B: Fn([&[f32]; 2], &[f32], &[f32], [bool; 2]) -> [Option<Vec<f32>>; 2] + Send + Sync + 'static,
{
    fn apply(self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        a.contiguous()?.apply_op2(&b.contiguous()?, self)
    }
}

impl<F, B> Apply<3> for Fused<F, B>
where
    F: Fn([&[f32]; 3]) -> Vec<f32> + Send + Sync + 'static,
    B: Fn([&[f32]; 3], &[f32], &[f32], [bool; 3]) -> [Option<Vec<f32>>; 3] + Send + Sync + 'static,
{
    fn apply(self, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
        a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, self)
    }
}
