//! RQ-VAE: an autoencoder whose latent is quantised level by level (TIGER's tokenizer), with
//! LETTER's two regularisers as options.

use candle_core::{D, Device, Tensor};
use common::nn::{Builder, Init, Linear, Parameters};
use common::ops::{self, Activation, CrossEntropyOptions};
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::{Seed, Stream};
use common::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::{Assignment, Codebook, kmeans, residual_kmeans};

/// | option | default | purpose |
/// |---|---|---|
/// | `widths` | [256, 128, 32] | hidden widths; the last is the latent's |
/// | `beta` | 0.25 | weight of the commitment term |
/// | `epochs` | 200 | passes over all items |
/// | `batch` | 1024 | items of a step |
/// | `learning_rate` | 1e-3 | AdamW's |
/// | `collaborative` | 0 | weight α of LETTER's L_CF; needs item vectors of a recommender (LETTER: 0.02) |
/// | `diversity` | 0 | weight β of LETTER's L_div (LETTER: 1e-3) |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RqVaeOptions {
    /// See the table.
    pub widths: Vec<usize>,
    /// See the table.
    pub beta: f64,
    /// See the table.
    pub epochs: usize,
    /// See the table.
    pub batch: usize,
    /// See the table.
    pub learning_rate: f64,
    /// See the table.
    pub collaborative: f64,
    /// See the table.
    pub diversity: f64,
}

impl Default for RqVaeOptions {
    fn default() -> Self {
        Self {
            widths: vec![256, 128, 32],
            beta: 0.25,
            epochs: 200,
            batch: 1024,
            learning_rate: 1e-3,
            collaborative: 0.0,
            diversity: 0.0,
        }
    }
}

impl RqVaeOptions {
    /// LETTER's weights of its two regularisers.
    pub fn letter(self) -> Self {
        Self { collaborative: 0.02, diversity: 1e-3, ..self }
    }
}

/// What LETTER's regularisers look at, for one batch.
pub struct Letter<'a> {
    /// Vectors of a recommender, `[items, latent]`.
    pub vectors: Option<Tensor>,
    /// Per level, cluster of each code.
    pub clusters: &'a [Vec<u32>],
    /// Draws the positives of L_div.
    pub stream: Stream,
}

/// Clusters of the codes of a level that count as alike in L_div (LETTER: 10).
const CLUSTERS: usize = 10;

/// The autoencoder.
#[derive(Debug, Clone)]
pub struct RqVae {
    encoder: Vec<Linear>,
    decoder: Vec<Linear>,
    codebooks: Vec<Tensor>,
    parameters: Parameters,
    options: RqVaeOptions,
}

/// A batch through the quantiser.
struct Quantised {
    /// Codes per level, `[items]`.
    codes: Vec<Tensor>,
    /// Sum of the chosen code vectors with the gradient of the latent (straight-through).
    through: Tensor,
    /// Σ_l ‖sg[r] − e‖² + β ‖r − sg[e]‖², means.
    loss: Tensor,
}

impl RqVae {
    /// A model for items of `width` values and `codes` per level.
    ///
    /// # Errors
    /// No hidden width or no level.
    pub fn new(width: usize, codes: &[usize], options: RqVaeOptions, seed: Seed) -> Result<Self> {
        if codes.is_empty() || codes.contains(&0) || options.widths.is_empty() {
            return Err(Error::usage(format!(
                "an RQ-VAE with levels {codes:?} and widths {:?}",
                options.widths
            )));
        }
        let mut builder = Builder::seeded(seed);
        let mut down = vec![width];
        down.extend(&options.widths);
        let up: Vec<usize> = down.iter().rev().copied().collect();
        let layers = |b: &mut Builder, widths: &[usize]| {
            let pairs = widths.windows(2).enumerate();
            let layer = |(at, pair): (usize, &[usize])| {
                b.within(at, |b| Linear::new(b, pair[0], pair[1], true))
            };
            pairs.map(layer).collect::<Result<Vec<_>>>()
        };
        let latent = down[down.len() - 1];
        Ok(Self {
            encoder: builder.within("encoder", |b| layers(b, &down))?,
            decoder: builder.within("decoder", |b| layers(b, &up))?,
            codebooks: codes
                .iter()
                .enumerate()
                .map(|(level, &size)| {
                    builder.tensor(&format!("codes.{level}"), (size, latent), Init::Normal(0.05))
                })
                .collect::<Result<_>>()?,
            parameters: builder.finish(),
            options,
        })
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn through(layers: &[Linear], x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (at, layer) in layers.iter().enumerate() {
            let inner = at + 1 < layers.len();
            x = layer.forward_activation(&x, inner.then_some(Activation::Relu))?;
        }
        Ok(x)
    }

    fn quantise(&self, latent: &Tensor) -> Result<Quantised> {
        let mut residual = latent.clone();
        let mut sum = latent.zeros_like()?.detach();
        let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        let mut codes = Vec::new();
        for codebook in &self.codebooks {
            let (target, vectors) = (residual.detach(), codebook.detach());
            let products = (target.matmul(&vectors.t()?)? * 2.0)?;
            let distances = vectors.sqr()?.sum(1)?.broadcast_sub(&products)?;
            let nearest = distances.argmin(D::Minus1)?;
            let chosen = ops::embedding(codebook, &nearest)?;
            let fixed = chosen.detach();
            loss = (loss + ops::mean_squared_error(&chosen, &target)?)?;
            let commitment = ops::mean_squared_error(&residual, &fixed)?;
            loss = (loss + (commitment * self.options.beta)?)?;
            residual = (residual - &fixed)?;
            sum = (sum + fixed)?;
            codes.push(nearest);
        }
        let through = (latent + (sum - latent.detach())?)?;
        Ok(Quantised { codes, through, loss })
    }

    /// Reconstruction + quantisation loss of items `[items, width]`; for LETTER plus α · L_CF and
    /// β · L_div. L_CF is the in-batch cross-entropy of ⟨ẑ_i, h_j⟩ with target i.
    ///
    /// # Errors
    /// Those of candle.
    pub fn loss(&self, items: &Tensor, letter: Option<Letter<'_>>) -> Result<Tensor> {
        let latent = Self::through(&self.encoder, items)?;
        let quantised = self.quantise(&latent)?;
        let rebuilt = Self::through(&self.decoder, &quantised.through)?;
        let mut loss = (ops::mean_squared_error(&rebuilt, items)? + &quantised.loss)?;
        let Some(mut letter) = letter else { return Ok(loss) };
        if let Some(vectors) = letter.vectors.filter(|_| self.options.collaborative > 0.0) {
            let own: Vec<u32> = (0..items.dim(0)? as u32).collect();
            let own = Tensor::new(&own[..], &Device::Cpu)?;
            let term = ops::linear_cross_entropy(&quantised.through, &vectors, None, &own)?;
            loss = (loss + (term * self.options.collaborative)?)?;
        }
        if self.options.diversity > 0.0 {
            for (level, clusters) in letter.clusters.iter().enumerate() {
                let term =
                    self.diversity(level, &quantised.codes[level], clusters, &mut letter.stream)?;
                loss = (loss + (term * self.options.diversity)?)?;
            }
        }
        Ok(loss)
    }

    /// L_div of a level: the chosen code is to be most like another code of its cluster, drawn at
    /// random; its own logit is masked.
    fn diversity(
        &self,
        level: usize,
        chosen: &Tensor,
        clusters: &[u32],
        stream: &mut Stream,
    ) -> Result<Tensor> {
        let codebook = &self.codebooks[level];
        let size = clusters.len();
        let chosen: Vec<u32> = chosen.to_vec1()?;
        let mut mask = vec![0f32; chosen.len() * size];
        let mut positives = Vec::with_capacity(chosen.len());
        for (row, &code) in chosen.iter().enumerate() {
            mask[row * size + code as usize] = -1e9;
            let alike: Vec<u32> = (0..size as u32)
                .filter(|&other| {
                    other != code && clusters[other as usize] == clusters[code as usize]
                })
                .collect();
            // alone in its cluster: any other code
            positives.push(match alike.len() {
                0 => (code + 1) % size as u32,
                several => alike[stream.below(several)],
            });
        }
        let mask = Tensor::from_vec(mask, (chosen.len(), size), &Device::Cpu)?;
        let rows = ops::embedding(codebook, &Tensor::new(&chosen[..], &Device::Cpu)?)?;
        let logits = (ops::linear(&rows, codebook, None)? + mask)?;
        let positives = Tensor::new(&positives[..], &Device::Cpu)?;
        Ok(ops::cross_entropy(&logits, &positives, &CrossEntropyOptions::default())?)
    }

    /// Per level, cluster of each code by balanced k-means on the code vectors.
    fn clusters(&self, seed: Seed) -> Result<Vec<Vec<u32>>> {
        let cluster = |codebook: &Tensor| {
            let vectors = array(codebook)?;
            let count = CLUSTERS.min(vectors.nrows() / 2).max(1);
            let mut stream = seed.stream("rqvae/clusters");
            Ok(kmeans(vectors.view(), count, Assignment::Balanced, &mut stream).1)
        };
        self.codebooks.iter().map(cluster).collect()
    }

    /// Codes of items and the code book in the latent space.
    ///
    /// # Errors
    /// Those of candle; a collapsed level.
    pub fn codebook(&self, items: &Tensor) -> Result<Codebook> {
        let latent = Self::through(&self.encoder, items)?.detach();
        let quantised = self.quantise(&latent)?;
        let columns: Vec<Vec<u32>> =
            quantised.codes.iter().map(|codes| Ok(codes.to_vec1()?)).collect::<Result<_>>()?;
        let rows: Vec<Vec<u32>> = (0..items.dim(0)?)
            .map(|item| columns.iter().map(|column| column[item]).collect())
            .collect();
        let points = array(&latent)?;
        for (level, column) in columns.iter().enumerate() {
            super::check_collapse(&points, column, level)?;
        }
        let vectors = self.codebooks.iter().map(array).collect::<Result<_>>()?;
        Ok(Codebook { table: crate::sid::SidTable::new(&rows)?, vectors, points })
    }
}

fn array(tensor: &Tensor) -> Result<Array2<f32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Array2::from_shape_vec(tensor.dims2()?, values).map_err(|error| Error::Bug(error.to_string()))
}

/// Trains an RQ-VAE on item vectors and returns its code book; the code vectors start from residual
/// k-means on the untrained latents. `collaborative` are LETTER's vectors, `[items, latent]`.
///
/// # Errors
/// Sizes that don't fit, a loss that is not finite, a collapsed level.
pub fn train_rqvae(
    points: &Array2<f32>,
    codes: &[usize],
    collaborative: Option<&Array2<f32>>,
    options: &RqVaeOptions,
    seed: Seed,
) -> Result<Codebook> {
    let (items, width) = points.dim();
    let model = RqVae::new(width, codes, options.clone(), seed)?;
    let tensor = |array: &Array2<f32>| {
        Tensor::from_vec(array.iter().copied().collect::<Vec<f32>>(), array.dim(), &Device::Cpu)
    };
    let all = tensor(points)?;
    let helpers = collaborative.map(tensor).transpose()?;
    let latent = RqVae::through(&model.encoder, &all)?.detach();
    let start = residual_kmeans(array(&latent)?, codes, Assignment::Nearest, seed)?;
    for (level, vectors) in start.vectors.iter().enumerate() {
        if let Some(var) = model.parameters.get(&format!("codes.{level}"))
            && var.dims() == [vectors.nrows(), vectors.ncols()]
        {
            var.set(&tensor(vectors)?)?;
        }
    }
    let adamw = AdamWOptions { weight_decay: 1e-4, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&model.parameters, adamw);
    let worker = Workers::new(1)?;
    let regularised = options.collaborative > 0.0 || options.diversity > 0.0;
    for epoch in 0..options.epochs {
        common::run::check_interrupt()?;
        let clusters = if regularised { model.clusters(seed)? } else { Vec::new() };
        let order = seed.stream(&format!("rqvae/{epoch}")).permutation(items);
        for (step, rows) in order.chunks(options.batch.max(1)).enumerate() {
            let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
            let rows = Tensor::new(&rows[..], &Device::Cpu)?;
            let batch = all.index_select(&rows, 0)?;
            let vectors = helpers.as_ref().map(|h| h.index_select(&rows, 0)).transpose()?;
            let (loss, gradients) = worker.gradients(&model.parameters, 1, |_| {
                let stream = seed.stream(&format!("rqvae/positives/{epoch}/{step}"));
                let letter = Letter { vectors: vectors.clone(), clusters: &clusters, stream };
                model.loss(&batch, regularised.then_some(letter))
            })?;
            if !loss.is_finite() {
                return Err(Error::data(
                    format!("an RQ-VAE loss of {loss} in epoch {epoch}"),
                    "a finite loss; lower its learning rate",
                ));
            }
            optimiser.step(&gradients, options.learning_rate)?;
        }
    }
    model.codebook(&all)
}
