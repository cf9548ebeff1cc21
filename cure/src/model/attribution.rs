//! Edge attribution (Eq. 1, Eq. 2), patched runs and the exact effect of an edge.
//!
//! The metric m is the logit difference right − wrong answer at the last position.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use common::lm::{Hooks, Lm, Reader, Writer};
use common::optim::Workers;
use common::{Error, Result, ops};

use super::{Edge, Network};

/// Prompt pairs of one length: clean x and corrupted x'.
#[derive(Debug, Clone)]
pub struct Pairs {
    clean: Vec<Vec<u32>>,
    corrupt: Vec<Vec<u32>>,
    /// Right and wrong answer token of every pair.
    answers: Vec<[u32; 2]>,
}

/// Pairs of one slice of the work: edges are summed per pair, so slices change no result.
const SLICE: usize = 16;

impl Pairs {
    /// Pairs of token ids with the right and the wrong answer token of each.
    ///
    /// # Errors
    /// [`Error::Usage`] (exit code 2) when there is no pair, or a pair's prompts or two pairs differ
    /// in length: attribution compares position with position.
    pub fn new(
        clean: Vec<Vec<u32>>,
        corrupt: Vec<Vec<u32>>,
        answers: Vec<[u32; 2]>,
    ) -> Result<Self> {
        let Some(length) = clean.first().map(Vec::len).filter(|&length| length > 0) else {
            return Err(Error::usage("attribution without prompt pairs; give at least one"));
        };
        if clean.len() != corrupt.len() || clean.len() != answers.len() {
            return Err(Error::usage(format!(
                "{} clean prompts, {} corrupted ones and {} answers; give as many of each",
                clean.len(),
                corrupt.len(),
                answers.len()
            )));
        }
        for (at, (clean, corrupt)) in clean.iter().zip(&corrupt).enumerate() {
            if clean.len() != length || corrupt.len() != length {
                return Err(Error::usage(format!(
                    "prompt pair {at}: {} clean and {} corrupted tokens, expected {length} of both; \
                     pad or cut the titles to one length",
                    clean.len(),
                    corrupt.len()
                )));
            }
        }
        Ok(Self { clean, corrupt, answers })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.clean.len()
    }

    /// Whether there is none; never the case.
    pub fn is_empty(&self) -> bool {
        self.clean.is_empty()
    }

    /// Tokens of all clean prompts; the corrupted ones have as many.
    pub fn tokens(&self) -> usize {
        self.clean.iter().map(Vec::len).sum()
    }

    /// The first `count` pairs.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        Self {
            clean: self.clean[..count].to_vec(),
            corrupt: self.corrupt[..count].to_vec(),
            answers: self.answers[..count].to_vec(),
        }
    }

    /// Those pairs of which `keep` holds true.
    pub fn filter(&self, keep: &[bool]) -> Option<Self> {
        let of = |all: &[Vec<u32>]| {
            all.iter().zip(keep).filter(|(_, keep)| **keep).map(|(p, _)| p.clone()).collect()
        };
        let answers: Vec<_> =
            self.answers.iter().zip(keep).filter(|(_, k)| **k).map(|(a, _)| *a).collect();
        let some = !answers.is_empty();
        some.then(|| Self { clean: of(&self.clean), corrupt: of(&self.corrupt), answers })
    }

    fn slices(&self) -> usize {
        self.len().div_ceil(SLICE)
    }

    fn slice(&self, slice: usize) -> Self {
        let range = slice * SLICE..((slice + 1) * SLICE).min(self.len());
        Self {
            clean: self.clean[range.clone()].to_vec(),
            corrupt: self.corrupt[range.clone()].to_vec(),
            answers: self.answers[range].to_vec(),
        }
    }

    fn ids(&self, of: &[Vec<u32>]) -> Result<Tensor> {
        let shape = (of.len(), of[0].len());
        Ok(Tensor::from_vec(of.concat(), shape, &Device::Cpu)?)
    }

    /// Logit difference of every pair, `[pairs]`, from hidden states `[pairs, tokens, hidden]`.
    fn metric(&self, lm: &Lm, hidden: &Tensor) -> Result<Tensor> {
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?;
        let of = |which: usize| {
            let tokens: Vec<u32> = self.answers.iter().map(|pair| pair[which]).collect();
            let tokens = Tensor::from_vec(tokens, self.len(), &Device::Cpu)?;
            Ok::<_, Error>(ops::embedding(lm.output_weight(), &tokens)?)
        };
        Ok((last * (of(0)? - of(1)?)?)?.sum(1)?)
    }
}

/// Keeps what is written.
#[derive(Default)]
struct Record {
    written: Vec<Tensor>,
}

impl Hooks for Record {
    fn write(&mut self, _: Writer, output: Tensor) -> Result<Tensor> {
        self.written.push(output.clone());
        Ok(output)
    }
}

/// Starts from a given embedding and adds a zero leaf to what each reader reads: its gradient is that
/// of the reader's input (candle keeps gradients of leaves only).
struct Trace {
    input: Tensor,
    seen: Vec<Var>,
}

/// A zero leaf, and `tensor` with it added.
fn with_leaf(tensor: &Tensor) -> Result<(Var, Tensor)> {
    let leaf = Var::from_tensor(&tensor.zeros_like()?.detach())?;
    let sum = (tensor + leaf.as_tensor())?;
    Ok((leaf, sum))
}

impl Hooks for Trace {
    fn write(&mut self, writer: Writer, output: Tensor) -> Result<Tensor> {
        Ok(if writer == Writer::Input { self.input.clone() } else { output })
    }

    fn read(&mut self, _: Reader, input: Tensor) -> Result<Tensor> {
        let (leaf, sum) = with_leaf(&input)?;
        self.seen.push(leaf);
        Ok(sum)
    }
}

/// Scores of all edges.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[pairs][edges]`, edges in the order of [`Network::edges`].
    pub per_pair: Vec<Vec<f64>>,
}

impl Scores {
    /// Mean over the pairs, one value per edge.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.per_pair.first().map_or(0, Vec::len)];
        for scores in &self.per_pair {
            for (mean, score) in mean.iter_mut().zip(scores) {
                *mean += score / self.per_pair.len() as f64;
            }
        }
        mean
    }
}

/// Eq. 1 (`steps` = `None`), edge attribution patching:
/// `s(u→v) = Σ_pos ⟨z_u(x') − z_u(x), ∂m/∂in_v |x⟩`; or Eq. 2, EAP-IG-inputs: the gradient is
/// averaged over the embeddings `e' + (k/S)(e − e')`, k = 0 … S − 1.
///
/// # Errors
/// Those of the passes; [`Error::Usage`] on 0 steps.
pub fn attribute(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    steps: Option<usize>,
    workers: &Workers,
) -> Result<Scores> {
    if steps == Some(0) {
        return Err(Error::usage("EAP-IG with 0 steps; use at least 1"));
    }
    let lm = lm.frozen()?;
    let parts =
        workers.map(pairs.slices(), |at| attribute_slice(&lm, network, &pairs.slice(at), steps))?;
    Ok(Scores { per_pair: parts.concat() })
}

fn attribute_slice(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    steps: Option<usize>,
) -> Result<Vec<Vec<f64>>> {
    let clean_ids = pairs.ids(&pairs.clean)?;
    let (mut clean, mut corrupt) = (Record::default(), Record::default());
    lm.hidden_hooked(&clean_ids, &mut clean)?;
    lm.hidden_hooked(&pairs.ids(&pairs.corrupt)?, &mut corrupt)?;
    let (e, e_corrupt) = (&clean.written[0], &corrupt.written[0]);
    let inputs = match steps {
        None => vec![e.clone()],
        Some(steps) => (0..steps)
            .map(|k| Ok((e_corrupt + ((e - e_corrupt)? * (k as f64 / steps as f64))?)?))
            .collect::<Result<_>>()?,
    };
    let share = 1.0 / inputs.len() as f64;
    // [pairs, readers, tokens · hidden]: mean gradient at every reader's input
    let mut gradients: Option<Tensor> = None;
    for input in inputs {
        let mut trace = Trace { input, seen: Vec::new() };
        let hidden = lm.hidden_hooked(&clean_ids, &mut trace)?;
        let store = pairs.metric(lm, &hidden)?.sum_all()?.backward()?;
        let of = |leaf: &Var| {
            let gradient = store.get(leaf).ok_or_else(|| {
                Error::Bug("attribution: a reader's input has no gradient".to_owned())
            })?;
            Ok::<_, Error>(gradient.flatten_from(1)?)
        };
        let all = trace.seen.iter().map(of).collect::<Result<Vec<_>>>()?;
        let all = (Tensor::stack(&all, 1)? * share)?;
        gradients = Some(match gradients {
            Some(sum) => (sum + all)?,
            None => all,
        });
    }
    let gradients = gradients.ok_or_else(|| Error::Bug("attribution without inputs".into()))?;
    let difference =
        |(corrupt, clean): (&Tensor, &Tensor)| Ok::<_, Error>((corrupt - clean)?.flatten_from(1)?);
    let differences = corrupt.written.iter().zip(&clean.written).map(difference);
    let differences = Tensor::stack(&differences.collect::<Result<Vec<_>>>()?, 1)?;
    let products = gradients.matmul(&differences.t()?)?.to_vec3::<f32>()?;
    let of_pair = |products: &Vec<Vec<f32>>| {
        network.edges.iter().map(|e| f64::from(products[e.reader][e.writer])).collect()
    };
    Ok(products.iter().map(of_pair).collect())
}

/// Lets chosen edges carry what their writer wrote in another run.
struct Patch<'a> {
    other: &'a [Tensor],
    /// Writers whose edge into a reader carries the other run's value.
    patched: &'a HashMap<Reader, Vec<usize>>,
    written: Vec<Tensor>,
}

impl Hooks for Patch<'_> {
    fn write(&mut self, _: Writer, output: Tensor) -> Result<Tensor> {
        self.written.push(output.clone());
        Ok(output)
    }

    fn read(&mut self, reader: Reader, mut input: Tensor) -> Result<Tensor> {
        for &writer in self.patched.get(&reader).map_or(&[][..], Vec::as_slice) {
            input = (input + (&self.other[writer] - &self.written[writer])?)?;
        }
        Ok(input)
    }
}

/// The metric of every pair when the edges of `kept` carry the present run's values and all others
/// those of the corrupted run, for several sets of edges: `[sets][pairs]`. `kept` is per edge of
/// [`Network::edges`].
///
/// # Errors
/// Those of the passes.
pub fn patched_metrics(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    kept: &[Vec<bool>],
    workers: &Workers,
) -> Result<Vec<Vec<f64>>> {
    let lm = lm.frozen()?;
    let parts = workers.map(pairs.slices(), |at| {
        let pairs = pairs.slice(at);
        let clean = pairs.ids(&pairs.clean)?;
        let mut corrupt = Record::default();
        lm.hidden_hooked(&pairs.ids(&pairs.corrupt)?, &mut corrupt)?;
        let metric = |kept: &Vec<bool>| {
            let mut patched: HashMap<Reader, Vec<usize>> = HashMap::new();
            for (edge, _) in network.edges.iter().zip(kept).filter(|(_, kept)| !**kept) {
                patched.entry(network.readers[edge.reader]).or_default().push(edge.writer);
            }
            let other = &corrupt.written;
            let mut hooks = Patch { other, patched: &patched, written: Vec::new() };
            let hidden = lm.hidden_hooked(&clean, &mut hooks)?;
            Ok(pairs.metric(&lm, &hidden)?.to_vec1::<f32>()?)
        };
        kept.iter().map(metric).collect::<Result<Vec<_>>>()
    })?;
    let mut all = vec![Vec::with_capacity(pairs.len()); kept.len()];
    for part in parts {
        for (all, part) in all.iter_mut().zip(part) {
            all.extend(part.into_iter().map(f64::from));
        }
    }
    Ok(all)
}

/// m(clean) and m(corrupted) of every pair.
///
/// # Errors
/// Those of the passes.
pub fn metrics(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    workers: &Workers,
) -> Result<[Vec<f64>; 2]> {
    let edges = network.edges.len();
    let both = [vec![true; edges], vec![false; edges]];
    let [clean, corrupt] = patched_metrics(lm, network, pairs, &both, workers)?
        .try_into()
        .map_err(|_| Error::Bug("two sets of edges, two metrics".to_owned()))?;
    Ok([clean, corrupt])
}

/// The effect of every edge alone: `m(only this edge carries x') − m(x)`, one pass per edge.
///
/// # Errors
/// Those of the passes.
pub fn exact(lm: &Lm, network: &Network, pairs: &Pairs, workers: &Workers) -> Result<Scores> {
    let edges = network.edges.len();
    let mut sets = vec![vec![true; edges]; edges + 1];
    for (edge, set) in sets.iter_mut().take(edges).enumerate() {
        set[edge] = false;
    }
    let metrics = patched_metrics(lm, network, pairs, &sets, workers)?;
    let of_pair =
        |pair: usize| (0..edges).map(|edge| metrics[edge][pair] - metrics[edges][pair]).collect();
    Ok(Scores { per_pair: (0..pairs.len()).map(of_pair).collect() })
}

/// Mean absolute gradient of the loss with respect to a gate ξ = 1 on each module's output (the
/// expectation in Eq. 5): `E |Σ_pos ⟨∂L/∂z_v, z_v⟩|`, L the cross-entropy of the two answers on the
/// clean prompts. One value per module.
///
/// # Errors
/// Those of the passes.
pub fn gate_gradients(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    workers: &Workers,
) -> Result<Vec<f64>> {
    /// Zero leaves added to what modules write, and the values.
    struct Gate {
        written: Vec<(Var, Tensor)>,
    }
    impl Hooks for Gate {
        fn write(&mut self, writer: Writer, output: Tensor) -> Result<Tensor> {
            if writer == Writer::Input {
                return Ok(output);
            }
            let (leaf, sum) = with_leaf(&output)?;
            self.written.push((leaf, output.detach()));
            Ok(sum)
        }
    }
    let lm = lm.frozen()?;
    let parts = workers.map(pairs.slices(), |at| {
        let pairs = pairs.slice(at);
        let mut gate = Gate { written: Vec::new() };
        let hidden = lm.hidden_hooked(&pairs.ids(&pairs.clean)?, &mut gate)?;
        let metric = pairs.metric(&lm, &hidden)?;
        // cross-entropy of two answers = softplus(−m): one column at 0, the wrong answer's at −m
        let logits = Tensor::stack(&[&metric, &metric.zeros_like()?.detach()], 1)?;
        let first = Tensor::zeros(pairs.len(), candle_core::DType::U32, &Device::Cpu)?;
        let options =
            ops::CrossEntropyOptions { reduction: ops::Reduction::Sum, ..Default::default() };
        let store = ops::cross_entropy(&logits, &first, &options)?.backward()?;
        let mut sums = Vec::with_capacity(network.modules());
        for (leaf, value) in &gate.written {
            let gradient = store.get(leaf).ok_or_else(|| {
                Error::Bug("attribution: a module's output has no gradient".to_owned())
            })?;
            let gates = (gradient * value)?.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?;
            sums.push(gates.iter().map(|gate| f64::from(gate.abs())).sum::<f64>());
        }
        Ok(sums)
    })?;
    let mut total = vec![0.0; network.modules()];
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part / pairs.len() as f64;
        }
    }
    Ok(total)
}

/// An edge as node indices of modules: `None` stands for input or logits.
pub fn ends(network: &Network, edge: Edge) -> [Option<usize>; 2] {
    [network.module_of_writer(edge.writer), network.module_of_reader(edge.reader)]
}
