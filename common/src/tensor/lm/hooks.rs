//! A pass with an explicit residual stream: read or replace what any head or MLP writes, and see what
//! each of them reads. For attribution, patching and dropout of each part; per-head arithmetic makes
//! it slower than [`Lm::logits`], to which it is otherwise equal.

use candle_core::{Device, Tensor};

use super::model::{Layer, wanted};
use super::{Lm, LmConfig};
use crate::nn::{AttentionInputs, Port};
use crate::ops::{self, AttentionOptions, RopeStyle, RopeTable};
use crate::{Error, Result};

/// What adds to the residual stream. The output bias of an attention layer belongs to no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Writer {
    /// The embedding (tokens and, in GPT-2, positions).
    Input,
    /// One attention head.
    Head {
        /// Layer.
        layer: usize,
        /// Query head.
        head: usize,
    },
    /// One feed-forward layer.
    Mlp {
        /// Layer.
        layer: usize,
    },
}

/// What reads the residual stream, before its norm. With grouped keys and values every query head has
/// its own key and value reader over the weights of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reader {
    /// Query, key or value of one head.
    Head {
        /// Layer.
        layer: usize,
        /// Query head.
        head: usize,
        /// Which of the three.
        port: Port,
    },
    /// One feed-forward layer.
    Mlp {
        /// Layer.
        layer: usize,
    },
    /// The final norm and the output layer.
    Logits,
}

/// Observes and changes a pass. All tensors are `[batch, tokens, hidden]`, in the last layer of a pass
/// that wants some rows `[rows, hidden]`; both methods return what the pass goes on with, by default
/// what it had.
pub trait Hooks {
    /// Whether [`Hooks::read`] is to be called for the heads' ports. Without, each layer norms, projects
    /// and attends once for all its heads, which is faster.
    fn reads_heads(&self) -> bool {
        true
    }

    /// The output of a writer, before it is added to the residual stream.
    fn write(&mut self, writer: Writer, output: Tensor) -> Result<Tensor> {
        let _ = writer;
        Ok(output)
    }

    /// The residual stream as a reader sees it.
    fn read(&mut self, reader: Reader, input: Tensor) -> Result<Tensor> {
        let _ = reader;
        Ok(input)
    }
}

impl LmConfig {
    /// All writers, in the order of the network.
    pub fn writers(&self) -> Vec<Writer> {
        let mut all = vec![Writer::Input];
        for layer in 0..self.num_hidden_layers {
            all.extend((0..self.num_attention_heads).map(|head| Writer::Head { layer, head }));
            all.push(Writer::Mlp { layer });
        }
        all
    }

    /// All readers, in the order of the network.
    pub fn readers(&self) -> Vec<Reader> {
        let mut all = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for head in 0..self.num_attention_heads {
                all.extend(Port::ALL.map(|port| Reader::Head { layer, head, port }));
            }
            all.push(Reader::Mlp { layer });
        }
        all.push(Reader::Logits);
        all
    }
}

impl Writer {
    /// Whether what it writes reaches `reader` in the same pass.
    pub fn precedes(self, reader: Reader) -> bool {
        let written = match self {
            Self::Input => 0,
            Self::Head { layer, .. } => 2 * layer + 1,
            Self::Mlp { layer } => 2 * layer + 2,
        };
        let read = match reader {
            Reader::Head { layer, .. } => 2 * layer + 1,
            Reader::Mlp { layer } => 2 * layer + 2,
            Reader::Logits => usize::MAX,
        };
        written < read
    }
}

impl Lm {
    /// Logits `[batch, tokens, vocabulary]` of a pass over unpadded `ids` that goes through `hooks`.
    pub fn logits_hooked(&self, ids: &Tensor, hooks: &mut dyn Hooks) -> Result<Tensor> {
        self.head.forward(&self.hidden_hooked(ids, hooks)?)
    }

    /// [`Lm::hidden`] through `hooks`, for those who need the logits of few positions.
    pub fn hidden_hooked(&self, ids: &Tensor, hooks: &mut dyn Hooks) -> Result<Tensor> {
        self.rows_hooked(ids, None, hooks)
    }

    /// [`Lm::hidden_hooked`] with [`super::Pass::rows`].
    pub fn rows_hooked(
        &self,
        ids: &Tensor,
        rows: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let (_, tokens) = ids.dims2()?;
        if tokens > self.config.max_position_embeddings {
            return Err(Error::data(
                format!("{tokens} tokens"),
                format!("at most {}", self.config.max_position_embeddings),
            ));
        }
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let mut hidden = self.embedding.forward(ids)?;
        let rope = match &self.positions {
            Some(table) => {
                let at = Tensor::new(&positions[..], &Device::Cpu)?;
                hidden = ops::add(&hidden, &table.forward(&at)?)?;
                None
            }
            None => {
                let (theta, dim) = (self.config.rope_theta, self.config.head_dim);
                Some(RopeTable::new(theta, dim, &[positions])?)
            }
        };
        hidden = hooks.write(Writer::Input, hidden)?;
        for (at, layer) in self.layers.iter().enumerate() {
            let rows = rows.filter(|_| at + 1 == self.layers.len());
            let heads = match hooks.reads_heads() {
                true => self.heads_apart(at, layer, &hidden, rope.as_ref(), hooks)?,
                false => self.heads_together(layer, &hidden, rope.as_ref())?,
            };
            let mut after = wanted(&hidden, rows)?;
            for (head, mixed) in heads.into_iter().enumerate() {
                let output = layer.attention.head_output(head, &wanted(&mixed, rows)?)?;
                let output = hooks.write(Writer::Head { layer: at, head }, output)?;
                after = ops::add(&after, &output)?;
            }
            if let Some(bias) = layer.attention.output_bias() {
                after = ops::add(&after, bias)?;
            }
            let seen = hooks.read(Reader::Mlp { layer: at }, after.clone())?;
            let output = layer.feed_forward(&seen)?;
            hidden = ops::add(&after, &hooks.write(Writer::Mlp { layer: at }, output)?)?;
        }
        hidden = hooks.read(Reader::Logits, hidden)?;
        self.norm.forward(&hidden)
    }

    /// The mixed values `[batch, tokens, dim]` of each head, whose ports read one by one.
    fn heads_apart(
        &self,
        at: usize,
        layer: &Layer,
        hidden: &Tensor,
        rope: Option<&RopeTable>,
        hooks: &mut dyn Hooks,
    ) -> Result<Vec<Tensor>> {
        let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
        let mut of = |head: usize| {
            let mut part = |port: Port| {
                let seen = hooks.read(Reader::Head { layer: at, head, port }, hidden.clone())?;
                let part =
                    layer.attention.project_head(port, head, &layer.norm1.forward(&seen)?)?;
                Ok::<_, Error>(match rope {
                    Some(table) if port != Port::Value => {
                        ops::rope(&part, table, RopeStyle::Half, true)?
                    }
                    _ => part,
                })
            };
            let (q, k, v) = (part(Port::Query)?, part(Port::Key)?, part(Port::Value)?);
            Ok(ops::attention(&q, &k, &v, &options)?.squeeze(2)?)
        };
        (0..self.config.num_attention_heads).map(&mut of).collect()
    }

    /// The same where nobody asks what the ports read.
    fn heads_together(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        rope: Option<&RopeTable>,
    ) -> Result<Vec<Tensor>> {
        let inputs = AttentionInputs { rope, ..AttentionInputs::default() };
        let mixed = layer.attention.mix(&layer.norm1.forward(hidden)?, inputs)?;
        let dim = self.config.head_dim;
        let of = |head: usize| Ok(mixed.narrow(2, head * dim, dim)?);
        (0..self.config.num_attention_heads).map(of).collect()
    }
}
