//! The model: embedding, layers, final norm, output layer.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};

use super::config::{Architecture, LmConfig};
use crate::nn::{
    Attention, AttentionInputs, Builder, Embedding, Heads, Init, KvCache, LayerNorm, Linear, Mlp,
    Parameters, RmsNorm, SwiGluMlp,
};
use crate::ops::{self, RopeTable};
use crate::rng::Seed;
use crate::{Error, Result};

/// A trainable decoder-only language model with the tensor names of transformers.
#[derive(Debug, Clone)]
pub struct Lm {
    pub(super) config: LmConfig,
    pub(super) parameters: Parameters,
    pub(super) embedding: Embedding,
    pub(super) positions: Option<Embedding>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) head: Linear,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) norm1: Norm,
    pub(super) attention: Attention,
    pub(super) norm2: Norm,
    pub(super) mlp: FeedForward,
}

#[derive(Debug, Clone)]
pub(super) enum FeedForward {
    Plain(Mlp),
    Gated(SwiGluMlp),
}

#[derive(Debug, Clone)]
pub(super) enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn new(builder: &mut Builder, config: &LmConfig) -> Result<Self> {
        Ok(match config.architecture {
            Architecture::Gpt2 => {
                Self::Layer(LayerNorm::new(builder, config.hidden_size, config.norm_eps)?)
            }
            _ => Self::Rms(RmsNorm::new(builder, config.hidden_size, config.norm_eps)?),
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// What goes into a pass beside the tokens.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// `[batch, tokens]` with the cached ones, non-zero = a real token.
    pub attention_mask: Option<&'a Tensor>,
    /// Position of every token, one row per sequence; the default counts on from the cache.
    pub positions: Option<&'a [Vec<u32>]>,
    /// Keys and values of earlier passes.
    pub cache: Option<&'a mut LmCache>,
    /// Vectors that the first layer reads in place of the token embeddings, `[batch, tokens,
    /// hidden]`; the ids then only give the shape, or the labels of a loss.
    pub inputs: Option<&'a Tensor>,
    /// Row-major positions in `[batch, tokens]` whose outputs are wanted, `[rows]` u32: what follows
    /// the last layer's attention is computed for them alone, and the pass gives `[rows, …]`.
    pub rows: Option<&'a Tensor>,
}

/// The caches of all layers.
#[derive(Debug, Default)]
pub struct LmCache {
    layers: Vec<KvCache>,
}

impl LmCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(length));
    }

    /// Keeps these sequences of the batch, in this order; one may occur several times.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.select(rows))
    }
}

impl Lm {
    /// New weights, distributed as transformers draws them: normal with `initializer_range`, norms 1,
    /// biases 0, GPT-2's residual projections scaled by `1 / √(2 · layers)`.
    pub fn new(config: &LmConfig, seed: Seed) -> Result<Self> {
        Self::build(config, Builder::seeded(seed))
    }

    /// Given weights under the names of transformers. Names and shapes are checked against the
    /// configuration; tensors that the model does not have are ignored.
    pub fn from_tensors(config: &LmConfig, mut tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let prefix = "transformer.";
        if config.architecture == Architecture::Gpt2
            && !tensors.keys().any(|name| name.starts_with(prefix))
        {
            // OpenAI's own GPT-2 files leave the prefix out
            tensors = tensors.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
        }
        Self::build(config, Builder::from_tensors(tensors))
    }

    /// A copy with constant weights, without adapters: gradients reach activations only, and a pass
    /// keeps nothing for the parameters. For attribution and teachers.
    pub fn frozen(&self) -> Result<Self> {
        Self::build(&self.config, Builder::from_tensors(self.parameters.tensors()).frozen())
    }

    fn build(config: &LmConfig, mut builder: Builder) -> Result<Self> {
        config.check()?;
        let c = config;
        let gpt2 = c.architecture == Architecture::Gpt2;
        let sd = c.initializer_range;
        let table = |b: &mut Builder, name: &str, rows: usize| {
            b.within(name, |b| Embedding::new(b, rows, c.hidden_size, sd))
        };
        let (embedding, positions, layers, norm) =
            builder.within(if gpt2 { "transformer" } else { "model" }, |b| {
                let names =
                    if gpt2 { ["wte", "h", "ln_f"] } else { ["embed_tokens", "layers", "norm"] };
                let embedding = table(b, names[0], c.vocab_size)?;
                let positions =
                    gpt2.then(|| table(b, "wpe", c.max_position_embeddings)).transpose()?;
                let layers = (0..c.num_hidden_layers)
                    .map(|at| b.within(format!("{}.{at}", names[1]), |b| Layer::new(b, c)))
                    .collect::<Result<Vec<_>>>()?;
                let norm = b.within(names[2], |b| Norm::new(b, c))?;
                Ok((embedding, positions, layers, norm))
            })?;
        let head = if c.tie_word_embeddings {
            Linear::tied(embedding.weight().clone(), None)
        } else {
            let init = Init::Normal(sd);
            builder.within("lm_head", |b| {
                Linear::with_init(b, c.hidden_size, c.vocab_size, None, init)
            })?
        };
        let parameters = builder.finish();
        Ok(Self { config: c.clone(), parameters, embedding, positions, layers, norm, head })
    }

    /// The sizes.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The trainable tensors, without those of adapters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Hidden states as transformers counts them: the embedding, after each layer but the last, and
    /// last the normalised output of the last layer; each `[batch, tokens, hidden]`.
    pub fn hidden_states(&self, ids: &Tensor, pass: Pass<'_>) -> Result<Vec<Tensor>> {
        let mut all = Vec::with_capacity(self.layers.len() + 1);
        let last = self.run(ids, pass, |hidden| all.push(hidden.clone()))?;
        all.push(last);
        Ok(all)
    }

    /// The table of token embeddings.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The normalised output of the last layer, `[batch, tokens, hidden]`, for `ids` `[batch,
    /// tokens]`; `[rows, hidden]` for a pass that wants some rows.
    pub fn hidden(&self, ids: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        self.run(ids, pass, |_| {})
    }

    fn run(&self, ids: &Tensor, pass: Pass<'_>, mut before: impl FnMut(&Tensor)) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let past = pass.cache.as_ref().map_or(0, |cache| cache.len());
        let longest = self.config.max_position_embeddings;
        if past + tokens > longest {
            return Err(Error::data(
                format!("{} tokens", past + tokens),
                format!("at most {longest}, the model's context; shorten the text"),
            ));
        }
        let counted = [(past..past + tokens).map(|position| position as u32).collect::<Vec<u32>>()];
        let positions = pass.positions.unwrap_or(&counted);
        if positions.iter().any(|row| row.len() != tokens)
            || (positions.len() != 1 && positions.len() != batch)
        {
            return Err(Error::Bug(format!("positions do not fit {batch} × {tokens} tokens")));
        }
        let mut hidden = match pass.inputs {
            None => self.embedding.forward(ids)?,
            Some(inputs) if inputs.dims() == [batch, tokens, self.config.hidden_size] => {
                inputs.clone()
            }
            Some(inputs) => {
                return Err(Error::Bug(format!(
                    "inputs {:?} for {batch} × {tokens} tokens of width {}",
                    inputs.dims(),
                    self.config.hidden_size
                )));
            }
        };
        let rope = match &self.positions {
            Some(table) => {
                let flat: Vec<u32> = positions.iter().flatten().copied().collect();
                let at = Tensor::from_vec(flat, (positions.len(), tokens), &Device::Cpu)?;
                hidden = ops::add(&hidden, &table.forward(&at)?)?;
                None
            }
            None => Some(RopeTable::new(self.config.rope_theta, self.config.head_dim, positions)?),
        };
        let mut caches = match pass.cache {
            Some(cache) => {
                cache.layers.resize_with(self.layers.len(), KvCache::default);
                cache.layers.iter_mut().map(Some).collect()
            }
            None => Vec::new(),
        };
        for (at, layer) in self.layers.iter().enumerate() {
            before(&hidden);
            let inputs = AttentionInputs {
                rope: rope.as_ref(),
                key_mask: pass.attention_mask,
                cache: caches.get_mut(at).and_then(Option::take),
                bidirectional: false,
            };
            let rows = pass.rows.filter(|_| at + 1 == self.layers.len());
            hidden = layer.forward(&hidden, inputs, rows)?;
        }
        self.norm.forward(&hidden)
    }

    /// Logits `[batch, tokens, vocabulary]`, or `[rows, vocabulary]`.
    pub fn logits(&self, ids: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        self.head.forward(&self.hidden(ids, pass)?)
    }

    /// Logits after the last token, `[batch, vocabulary]`.
    pub fn last_logits(&self, ids: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        if tokens == 0 {
            return Err(Error::usage("no token was given; give at least one"));
        }
        let last: Vec<u32> = (1..=batch).map(|row| (row * tokens - 1) as u32).collect();
        let rows = Tensor::from_vec(last, batch, &Device::Cpu)?;
        self.logits(ids, Pass { rows: Some(&rows), ..pass })
    }

    /// Weight `[vocabulary, hidden]` of the output layer, for logits of chosen positions or tokens.
    pub fn output_weight(&self) -> &Tensor {
        self.head.weight()
    }

    /// Mean cross-entropy of each token's successor; `labels` `[batch, tokens]` are shifted here, and
    /// those of [`ops::IGNORE_INDEX`] are left out. The logits are never held all at once.
    pub fn loss(&self, ids: &Tensor, labels: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        if ids.dims() != labels.dims() {
            return Err(Error::Bug(format!("ids {:?}, labels {:?}", ids.dims(), labels.dims())));
        }
        let hidden = self.hidden(ids, pass)?;
        let (batch, tokens) = ids.dims2()?;
        let Some(kept) = tokens.checked_sub(1).filter(|&kept| kept > 0) else {
            return Err(Error::usage("a loss needs at least two tokens a row"));
        };
        let hidden = hidden.narrow(1, 0, kept)?.reshape((batch * kept, ()))?;
        let labels = labels.narrow(1, 1, kept)?.flatten_all()?;
        let (weight, bias) = (self.head.weight(), self.head.bias());
        Ok(ops::linear_cross_entropy(&hidden, weight, bias, &labels)?)
    }

    /// Log-probability of each token given those before it, `[batch, tokens - 1]`.
    pub fn token_log_probs(&self, ids: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let logits = self.logits(ids, pass)?;
        let (batch, tokens, vocabulary) = logits.dims3()?;
        let kept = tokens.saturating_sub(1);
        let logits = logits.narrow(1, 0, kept)?.reshape((batch * kept, vocabulary))?;
        let next = ids.narrow(1, 1, kept)?.flatten_all()?;
        let options =
            ops::CrossEntropyOptions { reduction: ops::Reduction::None, ..Default::default() };
        let losses = ops::cross_entropy(&logits, &next, &options)?;
        Ok(losses.neg()?.reshape((batch, kept))?)
    }

    /// Every linear layer inside the blocks, with its full name.
    pub(super) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let gpt2 = self.config.architecture == Architecture::Gpt2;
        let mut all = Vec::new();
        for (at, layer) in self.layers.iter_mut().enumerate() {
            let (blocks, attention) =
                if gpt2 { ("transformer.h", "attn") } else { ("model.layers", "self_attn") };
            for (name, linear) in layer.attention.linears_mut() {
                all.push((format!("{blocks}.{at}.{attention}.{name}"), linear));
            }
            match &mut layer.mlp {
                FeedForward::Plain(mlp) => {
                    for (name, linear) in ["c_fc", "c_proj"].into_iter().zip(mlp.linears_mut()) {
                        all.push((format!("{blocks}.{at}.mlp.{name}"), linear));
                    }
                }
                FeedForward::Gated(mlp) => {
                    for (name, linear) in mlp.linears_mut() {
                        all.push((format!("{blocks}.{at}.mlp.{name}"), linear));
                    }
                }
            }
        }
        all
    }

    /// Grows or shrinks the vocabulary to `size`: known rows stay, new rows are drawn as new weights
    /// are. Optimisers must be made anew.
    pub fn resize_vocabulary(&self, size: usize, seed: Seed) -> Result<Self> {
        let config = LmConfig { vocab_size: size, ..self.config.clone() };
        let kept = size.min(self.config.vocab_size);
        let resized = |name: &str, old: &Tensor| {
            let fresh = size - kept;
            let mut stream = seed.stream(&format!("resize/{name}"));
            let new =
                stream.normal_tensor((fresh, config.hidden_size), config.initializer_range)?;
            Ok::<_, Error>(Tensor::cat(&[&old.narrow(0, 0, kept)?, &new], 0)?)
        };
        let mut tensors = self.parameters.tensors();
        let tables = ["transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight"];
        for name in tables {
            if let Some(old) = tensors.get(name) {
                let new = resized(name, old)?;
                tensors.insert(name.to_owned(), new);
            }
        }
        Self::from_tensors(&config, tensors)
    }
}

impl Layer {
    fn new(builder: &mut Builder, c: &LmConfig) -> Result<Self> {
        let heads = Heads {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
        };
        let (hidden, inner, sd) = (c.hidden_size, c.intermediate_size, c.initializer_range);
        if c.architecture != Architecture::Gpt2 {
            let weight = Init::Normal(sd);
            let bias = c.architecture == Architecture::Qwen2;
            return Ok(Self {
                norm1: builder.within("input_layernorm", |b| Norm::new(b, c))?,
                attention: builder.within("self_attn", |b| {
                    Attention::split(b, hidden, heads, bias, false, weight)
                })?,
                norm2: builder.within("post_attention_layernorm", |b| Norm::new(b, c))?,
                mlp: FeedForward::Gated(
                    builder.within("mlp", |b| SwiGluMlp::new(b, hidden, inner, weight))?,
                ),
            });
        }
        let residual_sd = sd / (2.0 * c.num_hidden_layers as f64).sqrt();
        let conv1d = |b: &mut Builder, name: &str, inputs: usize, outputs: usize, sd: f64| {
            b.within(name, |b| Linear::conv1d(b, inputs, outputs, sd))
        };
        Ok(Self {
            norm1: builder.within("ln_1", |b| Norm::new(b, c))?,
            attention: builder.within("attn", |b| {
                let qkv = conv1d(b, "c_attn", hidden, 3 * hidden, sd)?;
                Ok(Attention::packed(qkv, conv1d(b, "c_proj", hidden, hidden, residual_sd)?, heads))
            })?,
            norm2: builder.within("ln_2", |b| Norm::new(b, c))?,
            mlp: FeedForward::Plain(builder.within("mlp", |b| {
                let up = conv1d(b, "c_fc", hidden, inner, sd)?;
                Ok(Mlp::new(up, conv1d(b, "c_proj", inner, hidden, residual_sd)?, c.activation))
            })?),
        })
    }

    /// With `rows`, what follows the attention is computed for them alone: `[rows, hidden]` out.
    fn forward(
        &self,
        x: &Tensor,
        inputs: AttentionInputs<'_>,
        rows: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mixed = self.attention.mix(&self.norm1.forward(x)?, inputs)?;
        let (x, mixed) = (wanted(x, rows)?, wanted(&mixed, rows)?);
        let x = ops::add(&x, &self.attention.output(&mixed)?)?;
        Ok(ops::add(&x, &self.feed_forward(&x)?)?)
    }

    /// What the feed-forward layer adds to `x`.
    pub(super) fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.norm2.forward(x)?;
        match &self.mlp {
            FeedForward::Plain(mlp) => mlp.forward(&inner),
            FeedForward::Gated(mlp) => mlp.forward(&inner),
        }
    }
}

/// The wanted rows of `[batch, tokens, width]`, or all as they are.
pub(super) fn wanted(x: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
    Ok(match rows {
        Some(rows) => ops::embedding(&x.flatten_to(1)?, rows)?,
        None => x.clone(),
    })
}

/// Log-probabilities of the last axis.
pub(super) fn log_softmax(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let rows = logits.reshape(((), logits.dim(D::Minus1)?))?.to_vec2::<f32>()?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|&x| f64::from(x - top).exp()).sum();
            let log_sum = top + total.ln() as f32;
            row.into_iter().map(|x| x - log_sum).collect()
        })
        .collect())
}
