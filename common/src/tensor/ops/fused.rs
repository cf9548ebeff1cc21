//! A function of up to three f32 tensors with a hand-written gradient, as a node of candle's graph.
//!
//! candle adds every gradient to a buffer of zeros that it makes for it, which costs as much as many
//! an operator. Gradients between two fused operators go around it: an operator's place in candle's
//! graph is a *token* of one value; its output hangs from the token, for candle's operators to use,
//! and fused operators that use the output hang from the token, too. They put their gradients into
//! [`SUMS`] under the node's number, where the node finds them when candle comes to the token.
//! Gradients of variables go around candle in the same way during [`backward`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage,
    StorageRef, Tensor, TensorId, bail,
};

use super::kernel::add;

/// Number of a node.
type Key = u64;

/// Number of the next node.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Tokens of the living outputs of fused operators.
static TOKENS: LazyLock<Mutex<HashMap<TensorId, (Tensor, Key)>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Gradients of nodes that this thread's backward pass has not come to yet.
    static SUMS: RefCell<HashMap<Key, Sum>> = RefCell::default();
    /// Gradients of variables during a [`backward`] of this thread.
    static LEAVES: RefCell<Option<HashMap<TensorId, Sum>>> = const { RefCell::new(None) };
}

/// Gradients of a scalar: candle's, and those of variables that fused operators put aside.
pub(crate) struct Backward {
    store: GradStore,
    leaves: HashMap<TensorId, Sum>,
}

/// `loss.backward()`, without candle's zero-filled buffer and addition for every use of a variable:
/// fused operators hand their variables' gradients over directly.
pub(crate) fn backward(loss: &Tensor) -> Result<Backward> {
    /// An error or a panic must not leave the maps behind for later passes.
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            LEAVES.set(None);
            SUMS.take();
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
        let leaf = leaf.into_tensor(variable)?;
        Ok(Some(match store {
            Some(store) => (store + leaf)?,
            None => leaf,
        }))
    }
}

/// A gradient on its way to a node or a variable.
enum Sum {
    /// From fused operators.
    Values(Vec<f32>),
    /// candle's, not copied as long as nothing is added to it.
    Tensor(Tensor),
}

impl Sum {
    fn read<T>(&self, use_values: impl FnOnce(&[f32]) -> T) -> Result<T> {
        match self {
            Self::Values(values) => Ok(use_values(values)),
            Self::Tensor(tensor) => Values::of(tensor).get().map(use_values),
        }
    }

    /// As a tensor like `like`.
    fn into_tensor(self, like: &Tensor) -> Result<Tensor> {
        match self {
            Self::Values(values) => Tensor::from_vec(values, like.shape(), like.device()),
            Self::Tensor(tensor) => Ok(tensor),
        }
    }

    /// Adds this to what `sums` has under `key`.
    fn add_to<K: Eq + Hash>(self, sums: &mut HashMap<K, Self>, key: K) -> Result<()> {
        match sums.entry(key) {
            Entry::Occupied(mut sum) => {
                let sum = sum.get_mut();
                if let Self::Tensor(_) = sum {
                    *sum = Self::Values(sum.read(<[f32]>::to_vec)?);
                }
                if let Self::Values(values) = sum {
                    self.read(|gradient| add(values, gradient))?;
                }
            }
            Entry::Vacant(slot) => {
                slot.insert(self);
            }
        }
        Ok(())
    }

    /// Adds this to the gradient of the node `key`.
    fn send(self, key: Key) -> Result<()> {
        SUMS.with_borrow_mut(|sums| self.add_to(sums, key))
    }

    /// Adds this to the gradient of `variable`; gives it back, for candle, where no [`backward`] runs.
    fn put_aside(self, variable: &Tensor) -> Result<Option<Self>> {
        LEAVES.with_borrow_mut(|leaves| match leaves {
            Some(leaves) => self.add_to(leaves, variable.id()).map(|()| None),
            None => Ok(Some(self)),
        })
    }
}

/// Whether the fused kernels can take these tensors: all f32 on the CPU.
pub(super) fn fusable(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// Applies a function to `inputs` (f32 on the CPU; copied if they are not contiguous). `forward` maps
/// their values to the output's, which has `shape`. `backward` maps inputs, output, the output's
/// gradient and which inputs want one to the inputs' gradients; it answers `Some` where wanted.
pub(super) fn fused<const N: usize, F, B>(
    name: &'static str,
    inputs: [&Tensor; N],
    shape: impl Into<Shape>,
    forward: F,
    backward: B,
) -> Result<Tensor>
where
    F: FnOnce([&[f32]; N]) -> Vec<f32>,
    B: Fn([&[f32]; N], &[f32], &[f32], [bool; N]) -> [Option<Vec<f32>>; N] + Send + Sync + 'static,
    Node<N, B>: Apply<N>,
{
    let shape = shape.into();
    let inputs = all(inputs.map(Tensor::contiguous))?;
    let out = with_values(inputs.each_ref(), forward)?;
    if out.len() != shape.elem_count() {
        bail!("{name}: {} values for shape {shape:?}", out.len());
    }
    if !inputs.iter().any(Tensor::track_op) {
        return Tensor::from_vec(out, shape, &Device::Cpu);
    }
    let key = NEXT.fetch_add(1, Ordering::Relaxed);
    let ends = inputs.each_ref().map(End::of);
    let links = std::array::from_fn(|at| ends[at].link(&inputs[at]));
    let output: Arc<OnceLock<Tensor>> = Arc::default();
    // values alone: a node keeps no other node's output
    let inputs = inputs.map(|input| if input.is_variable() { input } else { input.detach() });
    let node = Node { name, key, inputs, ends, output: output.clone(), backward };
    let token = node.apply(links)?;
    let id: Arc<OnceLock<TensorId>> = Arc::default();
    let values = Mutex::new(Some((out, shape)));
    let result = token.apply_op1(Output { key, values, id: id.clone() })?;
    let _ = output.set(result.detach());
    let _ = id.set(result.id());
    TOKENS.lock().unwrap_or_else(PoisonError::into_inner).insert(result.id(), (token, key));
    Ok(result)
}

fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let mut found = Vec::with_capacity(N);
    for result in results {
        found.push(result?);
    }
    match found.try_into() {
        Ok(found) => Ok(found),
        Err(_) => bail!("fused operators: inputs were lost"),
    }
}

fn with_values<const N: usize, T>(
    tensors: [&Tensor; N],
    use_values: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let held = tensors.map(Values::of);
    let mut values: [&[f32]; N] = [&[]; N];
    for (value, held) in values.iter_mut().zip(&held) {
        *value = held.get()?;
    }
    Ok(use_values(values))
}

/// Where the gradient of an input goes.
enum End {
    /// Nowhere.
    Constant,
    /// To [`LEAVES`] during a [`backward`], else to candle.
    Variable,
    /// To another node, whose token this is.
    Node(Tensor, Key),
    /// To candle.
    Candle,
}

impl End {
    fn of(input: &Tensor) -> Self {
        if !input.track_op() {
            return Self::Constant;
        }
        if input.is_variable() {
            return Self::Variable;
        }
        match TOKENS.lock().unwrap_or_else(PoisonError::into_inner).get(&input.id()) {
            Some((token, key)) => Self::Node(token.clone(), *key),
            None => Self::Candle,
        }
    }

    /// What stands for the input in candle's graph.
    fn link(&self, input: &Tensor) -> Tensor {
        match self {
            Self::Node(token, _) => token.clone(),
            _ => input.clone(),
        }
    }
}

/// A fused operator in candle's graph; its value there is its token.
pub(super) struct Node<const N: usize, B> {
    name: &'static str,
    key: Key,
    inputs: [Tensor; N],
    ends: [End; N],
    output: Arc<OnceLock<Tensor>>,
    backward: B,
}

/// Value of a token, and what candle gets for its gradient.
fn nothing() -> Result<Tensor> {
    Tensor::zeros(1, DType::F32, &Device::Cpu)
}

impl<const N: usize, B> Node<N, B> {
    fn token(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    /// Gradients of the links: those that candle has to hand on, and nothing for tokens.
    fn gradients(&self) -> Result<[Option<Tensor>; N]>
    where
        B: Fn([&[f32]; N], &[f32], &[f32], [bool; N]) -> [Option<Vec<f32>>; N],
    {
        let Some(output) = self.output.get() else { bail!("{}: no output", self.name) };
        let upstream = SUMS.with_borrow_mut(|sums| sums.remove(&self.key));
        let upstream = upstream.unwrap_or_else(|| Sum::Values(vec![0.0; output.elem_count()]));
        let wanted = self.ends.each_ref().map(|end| !matches!(end, End::Constant));
        let computed = with_values(self.inputs.each_ref(), |inputs| {
            let output = Values::of(output);
            let output = output.get()?;
            upstream.read(|g| (self.backward)(inputs, output, g, wanted))
        })??;
        let mut gradients = [const { None }; N];
        let of_inputs = computed.into_iter().zip(&self.inputs).zip(&self.ends);
        for (slot, ((values, input), end)) in gradients.iter_mut().zip(of_inputs) {
            let sum = values.map(Sum::Values);
            let for_candle = match (end, sum) {
                (End::Constant, _) => None,
                (End::Variable, Some(sum)) => sum.put_aside(input)?,
                (End::Variable | End::Candle, sum) => sum,
                (End::Node(_, key), sum) => {
                    if let Some(sum) = sum {
                        sum.send(*key)?;
                    }
                    *slot = Some(nothing()?);
                    None
                }
            };
            if let Some(sum) = for_candle {
                *slot = Some(sum.into_tensor(input)?);
            }
        }
        Ok(gradients)
    }
}

/// The output of a node for candle's operators.
struct Output {
    key: Key,
    values: Mutex<Option<(Vec<f32>, Shape)>>,
    id: Arc<OnceLock<TensorId>>,
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "fused output"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        match values.take() {
            Some((values, shape)) => Ok((CpuStorage::F32(values), shape)),
            None => bail!("the output of a fused operator was taken before"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Sum::Tensor(gradient.contiguous()?).send(self.key)?;
        nothing().map(Some)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(id) = self.id.get() else { return };
        let removed = TOKENS.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        // not under the lock: a token may be the last to hold other outputs
        drop(removed);
    }
}

/// Number of inputs → candle's trait for it.
pub(super) trait Apply<const N: usize> {
    /// The node's token, hanging from `links`.
    fn apply(self, links: [Tensor; N]) -> Result<Tensor>;
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
        let found = candle_core::backend::BackendStorage::dtype(storage);
        bail!("fused operators take f32, found {found:?}");
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => {
            bail!("fused operators take contiguous tensors, found strides {:?}", layout.stride())
        }
    }
}

impl<B> CustomOp1 for Node<1, B>
where
    B: Fn([&[f32]; 1], &[f32], &[f32], [bool; 1]) -> [Option<Vec<f32>>; 1],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.token()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients()?;
        Ok(a)
    }
}

impl<B> CustomOp2 for Node<2, B>
where
    B: Fn([&[f32]; 2], &[f32], &[f32], [bool; 2]) -> [Option<Vec<f32>>; 2],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.token()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients()?;
        Ok((a, b))
    }
}

impl<B> CustomOp3 for Node<3, B>
where
    B: Fn([&[f32]; 3], &[f32], &[f32], [bool; 3]) -> [Option<Vec<f32>>; 3],
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.token()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients()?;
        Ok((a, b, c))
    }
}

impl<B> Apply<1> for Node<1, B>
where
    B: Fn([&[f32]; 1], &[f32], &[f32], [bool; 1]) -> [Option<Vec<f32>>; 1] + Send + Sync + 'static,
{
    fn apply(self, [a]: [Tensor; 1]) -> Result<Tensor> {
        a.apply_op1(self)
    }
}

impl<B> Apply<2> for Node<2, B>
where
    B: Fn([&[f32]; 2], &[f32], &[f32], [bool; 2]) -> [Option<Vec<f32>>; 2] + Send + Sync + 'static,
{
    fn apply(self, [a, b]: [Tensor; 2]) -> Result<Tensor> {
        a.apply_op2(&b, self)
    }
}

impl<B> Apply<3> for Node<3, B>
where
    B: Fn([&[f32]; 3], &[f32], &[f32], [bool; 3]) -> [Option<Vec<f32>>; 3] + Send + Sync + 'static,
{
    fn apply(self, [a, b, c]: [Tensor; 3]) -> Result<Tensor> {
        a.apply_op3(&b, &c, self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Var;

    use super::super::add;
    use super::*;

    fn registered(tensors: &[&Tensor]) -> usize {
        let tokens = TOKENS.lock().unwrap();
        tensors.iter().filter(|t| tokens.contains_key(&t.id())).count()
    }

    #[test]
    fn outputs_are_forgotten_with_their_tensors() {
        let x = Var::from_vec(vec![1f32, 2.0, 3.0], 3, &Device::Cpu).unwrap();
        let one = add(&x, &x).unwrap();
        let two = add(&one, &x).unwrap();
        assert_eq!(registered(&[&one, &two]), 2);
        let (first, second) = (one.id(), two.id());
        drop(one);
        assert!(!TOKENS.lock().unwrap().contains_key(&first));
        let mut found = backward(&two.sum_all().unwrap()).unwrap();
        let gradient = found.remove(&x).unwrap().unwrap();
        assert_eq!(gradient.to_vec1::<f32>().unwrap(), [3.0; 3]);
        drop(two);
        assert!(!TOKENS.lock().unwrap().contains_key(&second));
        assert!(SUMS.with_borrow(HashMap::is_empty));
    }

    #[test]
    fn constants_leave_no_trace() {
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let sum = add(&x, &x).unwrap();
        assert_eq!(registered(&[&sum]), 0);
        assert!(!sum.track_op());
    }
}
