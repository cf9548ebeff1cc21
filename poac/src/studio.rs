//! All trained pieces together: `fit` makes them, the other verbs use them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::assets::Assets;
use common::lm::Lm;
use common::rng::{Seed, Stream};
use common::{Result, emoji};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::choice;
use crate::config::Config;
use crate::data::pairs::{OBJECTS, TEMPLATES, optimised, prompt_ids};
use crate::data::world::Split;
use crate::data::{Gate, Images, Style, Vocabulary, World};
use crate::eval::cosines;
use crate::features::Features;
use crate::model::reward::Standard;
use crate::model::sample::{sample, start_noise};
use crate::model::{Codec, Denoiser, QualityHead, Schedule, Scorer};
use crate::store::{Piece, Store};
use crate::train::denoiser::Captioned;
use crate::train::plm::PlmOptions;
use crate::train::ppo::Choices;
use crate::train::refl::{Adapted, Asked, ReflOptions, RewardModel, Stage};
use crate::train::scorer::Side;
use crate::train::{self, History};

/// Raised whenever training code changes what it gives.
const VERSION: u32 = 2;

/// Pictures of the base model that standardise the rewards (1,000 in the specification).
const STANDARD_SAMPLE: usize = 128;

/// The world, its words as features and its pictures.
#[derive(Debug)]
pub struct Base {
    /// Settings.
    pub config: Config,
    /// Objects and concepts.
    pub world: World,
    /// Pictures of the objects.
    pub images: Images,
    /// Word features.
    pub features: Features,
    /// ᾱ.
    pub schedule: Schedule,
    /// What is abstract.
    pub gate: Gate,
    store: Store,
    fingerprint: String,
}

/// The image side: code, denoiser, scorers, heads.
#[derive(Debug)]
pub struct ImageModels {
    /// Code of pictures.
    pub codec: Codec,
    /// The denoiser before ReFL.
    pub denoiser: Denoiser,
    /// Scorer A: the reward.
    pub scorer_a: Scorer,
    /// Scorer B: evaluation only.
    pub scorer_b: Scorer,
    /// Quality head on scorer A.
    pub quality_a: QualityHead,
    /// Quality head on scorer B.
    pub quality_b: QualityHead,
    /// μ and σ of the rewards over pictures of the base model.
    pub standards: Standards,
    /// Losses by name of the training.
    pub histories: BTreeMap<String, History>,
}

/// Standardisation of the two rewards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standards {
    /// Of scorer A's cosine.
    pub clip: Standard,
    /// Of the quality head on scorer A.
    pub quality: Standard,
}

/// How ReFL is run: the paper's way or a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// As configured.
    Reward,
    /// A constant reward: only the pre-training loss moves the adapters.
    Constant,
}

impl Base {
    /// Reads emoji and MiniLM from the assets, builds the world and draws it.
    ///
    /// # Errors
    /// [`common::Error::Asset`] when an asset is absent; those of [`World::new`].
    pub fn new(config: &Config, assets: &Assets, seed: Seed) -> Result<Self> {
        Self::open(config, assets, seed, true)
    }

    /// [`Base::new`] without the trained pieces that come with the crate: what the cache does not hold
    /// is trained.
    ///
    /// # Errors
    /// As [`Base::new`].
    pub fn unbundled(config: &Config, assets: &Assets, seed: Seed) -> Result<Self> {
        Self::open(config, assets, seed, false)
    }

    fn open(config: &Config, assets: &Assets, seed: Seed, bundled: bool) -> Result<Self> {
        let gate = match &config.concreteness {
            Some(path) => Gate::with_ratings(path)?,
            None => Gate::default(),
        };
        let pictures = emoji::load(assets)?;
        let world = World::new(&pictures, &gate, &config.world, seed)?;
        let names = world.objects.iter().map(|object| object.name.as_str());
        let words = world.concepts.iter().map(|concept| concept.word.as_str());
        let vocabulary = Vocabulary::new(names, words);
        let images = Images::draw(&world, config.diffusion.size)?;
        let schedule = Schedule::new(config.diffusion.beta, config.diffusion.times);
        let store = Store::new(&assets.options().cache.join("trained").join("poac"), bundled);
        let splits: Vec<u8> = world.concepts.iter().map(|concept| concept.split as u8).collect();
        let described = format!("{VERSION} {:?} {splits:?}", vocabulary.tokens());
        let fingerprint = common::run::hash8(described.as_bytes());
        let key = json!([fingerprint, config.plm.width]);
        let (tensors, ()) = store.get("features", &key, |_| {
            Ok((Features::fit(vocabulary.clone(), config.plm.width, assets)?.tensors()?, ()))
        })?;
        let features = Features::from_tensors(vocabulary, &tensors, assets)?;
        let config = config.clone();
        Ok(Self { config, world, images, features, schedule, gate, store, fingerprint })
    }

    /// Patch tokens of a picture.
    pub fn tokens(&self) -> usize {
        (self.config.diffusion.size / crate::model::codec::PATCH).pow(2)
    }

    /// The prompt language model of a seed; `shuffle` trains on other concepts' objects (a control).
    ///
    /// # Errors
    /// Those of the training.
    pub fn plm(&self, seed: Seed, shuffle: bool) -> Result<(Lm, History)> {
        self.plm_with(&self.config.plm, seed, shuffle)
    }

    /// [`Base::plm`] with other settings than the config's.
    ///
    /// # Errors
    /// Those of the training.
    pub fn plm_with(
        &self,
        options: &PlmOptions,
        seed: Seed,
        shuffle: bool,
    ) -> Result<(Lm, History)> {
        let key = json!([self.fingerprint, options, seed.value(), shuffle]);
        let fresh = train::plm::new_model(&self.features, options, seed)?;
        let (tensors, history) = self.store.get("plm", &key, |work| {
            let history =
                train::plm::fit(&fresh, &self.world, &self.features, options, shuffle, seed, work)?;
            let rows = self.features.vocabulary().first_word();
            Ok((train::plm::trained_tensors(&fresh, rows)?, history))
        })?;
        Ok((train::plm::with_trained(&fresh, tensors)?, history))
    }

    /// The language model after PPO as configured, with the mean reward of every batch. The reward is
    /// Eq. 12 with the quality head in place of the aesthetic one and scorer A in place of CLIP, whose
    /// cosine costs below the base model's mean; the untuned denoiser draws.
    ///
    /// # Errors
    /// Those of the training.
    pub fn ppo(&self, models: &ImageModels, seed: Seed) -> Result<(Lm, History)> {
        let (supervised, _) = self.plm(seed, false)?;
        let (config, options) = (&self.config, &self.config.ppo);
        let plm = &config.plm;
        let key =
            json!([self.fingerprint, plm, config.scorer, config.diffusion, options, seed.value()]);
        let (tensors, history) = self.store.get("ppo", &key, |work| {
            let rows = self.features.vocabulary().first_word();
            let copy = train::plm::trained_tensors(&supervised, rows)?;
            let model = train::plm::with_trained(&supervised, copy)?;
            let vocabulary = self.features.vocabulary();
            let name = |object: &crate::data::Object| vocabulary.id(&object.name).unwrap_or(0);
            let choices = Choices {
                names: self.world.objects.iter().map(name).collect(),
                comma: vocabulary.id(",").unwrap_or(0),
                rows,
            };
            let draw = |stream: &mut Stream| {
                let [x, _] = self.train_prompts(1, 0.0, stream).remove(0);
                (prompt_ids(vocabulary, &x), x)
            };
            let reward = |asked: &[String], chosen: &[[usize; OBJECTS]], stream: &mut Stream| {
                let told = asked.iter().zip(chosen).map(|(x, objects)| {
                    let names = objects.map(|at| self.world.objects[at].name.as_str());
                    let grey = x.ends_with(Style::Grey.word());
                    optimised(&names, if grey { Style::Grey } else { Style::Colour })
                });
                self.prompt_rewards(models, asked, &told.collect::<Vec<_>>(), stream)
            };
            let history = train::ppo::fit(&model, &choices, options, draw, reward, seed, work)?;
            Ok((train::plm::trained_tensors(&model, rows)?, history))
        })?;
        Ok((train::plm::with_trained(&supervised, tensors)?, history))
    }

    /// Eq. 12: gain in quality of pictures of `told` over those of `asked`, minus a penalty for
    /// pictures farther from `asked` than the base model's mean; averaged over `ppo.images` pictures.
    fn prompt_rewards(
        &self,
        models: &ImageModels,
        asked: &[String],
        told: &[String],
        stream: &mut Stream,
    ) -> Result<Vec<f64>> {
        let texts = self.features.batch(asked)?.mean()?;
        let texts = models.scorer_a.embed_texts(&texts)?;
        let mut sums = vec![0.0; asked.len()];
        for _ in 0..self.config.ppo.images {
            let first = stream.below(1 << 40) as u64;
            let seeds: Vec<u64> = (0..asked.len() as u64).map(|at| first + at).collect();
            let shown = |prompts: &[String]| -> Result<(Tensor, Vec<f32>)> {
                let pictures = self.generate(&models.denoiser, &models.codec, prompts, &seeds)?;
                let features = models.scorer_a.image_features(&pictures)?;
                Ok((pictures, models.quality_a.forward(&features)?.to_vec1::<f32>()?))
            };
            let ((pictures, after), (_, before)) = (shown(told)?, shown(asked)?);
            let near = cosines(&models.scorer_a.embed_images(&pictures)?, &texts)?;
            for (at, sum) in sums.iter_mut().enumerate() {
                let gap = near[at].max(0.0) - models.standards.clip.mean;
                let relevance = (self.config.ppo.relevance * gap).min(0.0);
                *sum += f64::from(after[at] - before[at]) + relevance;
            }
        }
        Ok(sums.into_iter().map(|sum| sum / self.config.ppo.images as f64).collect())
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// A hash of data, splits and code.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Everything trained or taken from the cache so far, for [`crate::store::write`].
    pub fn into_pieces(self) -> Vec<Piece> {
        self.store.taken()
    }

    /// All image models of a seed before ReFL.
    ///
    /// # Errors
    /// Those of the trainings.
    pub fn image_models(&self, seed: Seed) -> Result<ImageModels> {
        let mut histories = BTreeMap::new();
        let (scorer_a, quality_a) = self.scorer(Side::A, seed, &mut histories)?;
        let (scorer_b, quality_b) = self.scorer(Side::B, seed, &mut histories)?;
        let diffusion = &self.config.diffusion;
        let width = self.features.width();
        let components = diffusion.model.components;
        let objects: Vec<(usize, Style)> =
            (0..self.images.len()).map(|at| (at, Style::Colour)).collect();
        let pictures = self.images.batch(&objects)?;
        let key = json!([self.fingerprint, diffusion, seed.value()]);
        let (mut tensors, history) = self.store.get("denoiser", &key, |work| {
            let codec = Codec::fit(&pictures, components, seed)?;
            let captioned = Captioned::new(&self.world, &self.images, &codec, &self.features)?;
            let denoiser =
                Denoiser::new(&diffusion.model, captioned.codes(Style::Colour), width, seed)?;
            let history = train::denoiser::fit(
                &denoiser,
                &self.schedule,
                diffusion.prediction,
                &captioned,
                &diffusion.pace,
                seed,
                work,
            )?;
            let mut tensors = owned(denoiser.parameters().tensors())?;
            tensors.extend(codec.tensors());
            Ok((tensors, history))
        })?;
        let codec = Codec::from_tensors(&tensors, components)?;
        tensors.retain(|name, _| !name.starts_with("codec."));
        let codes = codec.encode(&pictures)?;
        let denoiser = Denoiser::from_tensors(&diffusion.model, &codes, width, tensors)?;
        histories.insert("denoiser".to_owned(), history);
        let mut models = ImageModels {
            codec,
            denoiser,
            scorer_a,
            scorer_b,
            quality_a,
            quality_b,
            standards: Standards { clip: Standard::of(&[]), quality: Standard::of(&[]) },
            histories,
        };
        let key = json!([
            self.fingerprint,
            diffusion,
            self.config.scorer,
            self.config.refl,
            seed.value()
        ]);
        let (_, standards) = self
            .store
            .get("standards", &key, |_| Ok((BTreeMap::new(), self.standards(&models, seed)?)))?;
        models.standards = standards;
        Ok(models)
    }

    fn scorer(
        &self,
        side: Side,
        seed: Seed,
        histories: &mut BTreeMap<String, History>,
    ) -> Result<(Scorer, QualityHead)> {
        let options = &self.config.scorer;
        let (size, width) = (self.images.size(), self.features.width());
        let name = format!("scorer-{}", if side == Side::A { "a" } else { "b" });
        let own = Seed::new(seed.value() ^ if side == Side::A { 0xa } else { 0xb0 });
        let key = json!([self.fingerprint, options, size, own.value()]);
        let (tensors, history) = self.store.get(&name, &key, |work| {
            let scorer = Scorer::new(&options.model, size, width, own)?;
            let history = train::scorer::fit(
                &scorer,
                &self.world,
                &self.images,
                &self.features,
                side,
                &options.pace,
                own,
                work,
            )?;
            Ok((owned(scorer.parameters().tensors())?, history))
        })?;
        let scorer = Scorer::frozen(&options.model, size, width, tensors)?;
        histories.insert(name.clone(), history);
        let inputs = options.model.width;
        let name = format!("quality-{name}");
        let (tensors, history) = self.store.get(&name, &key, |work| {
            let head = QualityHead::new(inputs, train::quality::WIDTHS, own)?;
            let history = train::quality::fit(
                &head,
                &scorer,
                &self.images,
                options.quality_pictures,
                own,
                work,
            )?;
            Ok((owned(head.parameters().tensors())?, history))
        })?;
        histories.insert(name, history);
        let head = QualityHead::frozen(inputs, train::quality::WIDTHS, tensors)?;
        Ok((scorer, head))
    }

    /// Short and optimised prompts of train concepts by Algorithm 4; a share stays short.
    fn train_prompts(&self, count: usize, raw_share: f64, stream: &mut Stream) -> Vec<[String; 2]> {
        let concepts: Vec<_> =
            self.world.split(Split::Train).filter(|concept| concept.abstract_word).collect();
        (0..count)
            .map(|_| {
                let concept = concepts[stream.below(concepts.len())];
                let chosen = stream.sample(concept.objects.len(), OBJECTS);
                let name = |at: &usize| self.world.objects[concept.objects[*at]].name.as_str();
                let style = if stream.chance(0.2) { Style::Grey } else { Style::Colour };
                let short = format!("{} {}, in {}", TEMPLATES[0], concept.word, style.word());
                let told = match raw_share > 0.0 && stream.chance(raw_share) {
                    true => short.clone(),
                    false => optimised(&chosen.iter().map(name).collect::<Vec<_>>(), style),
                };
                [short, told]
            })
            .collect()
    }

    fn asked(&self, prompts: &[[String; 2]]) -> Result<Asked> {
        let column = |at: usize| prompts.iter().map(|pair| pair[at].as_str()).collect::<Vec<_>>();
        let [original, told] = [self.features.batch(&column(0))?, self.features.batch(&column(1))?];
        Ok(Asked { told, original })
    }

    fn standards(&self, models: &ImageModels, seed: Seed) -> Result<Standards> {
        let mut stream = seed.stream("standards");
        let refl = &self.config.refl;
        let prompts = self.train_prompts(STANDARD_SAMPLE, refl.raw_share, &mut stream);
        let seeds: Vec<u64> = (0..prompts.len() as u64).collect();
        let told: Vec<String> = prompts.iter().map(|[_, told]| told.clone()).collect();
        let pictures = self.generate(&models.denoiser, &models.codec, &told, &seeds)?;
        let asked = self.asked(&prompts)?;
        let clip = RewardModel::relevance(&models.scorer_a, &pictures, &asked, refl.relevance)?;
        let clip = clip.to_vec1::<f32>()?;
        let features = models.scorer_a.image_features(&pictures)?;
        let quality = models.quality_a.forward(&features)?.to_vec1::<f32>()?;
        let standard =
            |values: Vec<f32>| Standard::of(&values.into_iter().map(f64::from).collect::<Vec<_>>());
        Ok(Standards { clip: standard(clip), quality: standard(quality) })
    }

    /// Pictures `[n, 3, size, size]` in -1..1, one seed a prompt.
    ///
    /// # Errors
    /// Those of the word features.
    pub fn generate(
        &self,
        denoiser: &Denoiser,
        codec: &Codec,
        prompts: &[String],
        seeds: &[u64],
    ) -> Result<Tensor> {
        let diffusion = &self.config.diffusion;
        let start = start_noise(seeds, self.tokens(), diffusion.model.components)?;
        let text = self.features.batch(prompts)?;
        let empty = self.features.empty(prompts.len())?;
        let codes = sample(
            denoiser,
            &self.schedule,
            diffusion.prediction,
            &text,
            &empty,
            &start,
            &diffusion.sample,
        )?;
        Ok(codec.decode(&codes)?.clamp(-1f32, 1f32)?)
    }

    /// The frozen path to the reward.
    pub fn reward_model<'a>(&'a self, models: &'a ImageModels) -> RewardModel<'a> {
        RewardModel {
            untuned: &models.denoiser,
            schedule: &self.schedule,
            prediction: self.config.diffusion.prediction,
            codec: &models.codec,
            scorer: &models.scorer_a,
            quality: &models.quality_a,
            clip_standard: models.standards.clip,
            quality_standard: models.standards.quality,
        }
    }

    /// The denoiser after ReFL with the setting that validation concepts choose, with one history a
    /// stage.
    ///
    /// # Errors
    /// Those of the training.
    pub fn tuned(
        &self,
        models: &ImageModels,
        tuning: Tuning,
        seed: Seed,
    ) -> Result<(Denoiser, Vec<History>)> {
        let best = self.choose_refl(models, seed)?.best();
        let refl = choice::settings(&self.config).swap_remove(best);
        self.tuned_with(models, &refl_options(refl, tuning), seed)
    }

    /// [`Base::tuned`] with other settings than the config's.
    ///
    /// # Errors
    /// Those of the training.
    pub fn tuned_with(
        &self,
        models: &ImageModels,
        refl: &ReflOptions,
        seed: Seed,
    ) -> Result<(Denoiser, Vec<History>)> {
        let config = &self.config;
        let key = json!([self.fingerprint, config.diffusion, config.scorer, refl, seed.value(),]);
        let all = refl.adapted == Adapted::All;
        let (tensors, histories) = self.store.get("refl", &key, |work: &Path| {
            let mut denoiser = models.denoiser.clone();
            let adapters = denoiser.attach_lora(refl.rank, all, seed)?;
            let captioned =
                Captioned::new(&self.world, &self.images, &models.codec, &self.features)?;
            let prompts = |count: usize, stream: &mut Stream| {
                self.asked(&self.train_prompts(count, refl.raw_share, stream))
            };
            let histories = train::refl::fit(
                &denoiser,
                &adapters,
                &self.reward_model(models),
                &captioned,
                refl,
                prompts,
                seed,
                work,
            )?;
            Ok((owned(adapters.tensors())?, histories))
        })?;
        let mut denoiser = models.denoiser.clone();
        denoiser.load_lora(refl.rank, all, tensors)?;
        Ok((denoiser, histories))
    }
}

fn refl_options(refl: ReflOptions, tuning: Tuning) -> ReflOptions {
    match tuning {
        Tuning::Reward => refl,
        Tuning::Constant => ReflOptions {
            stages: refl
                .stages
                .iter()
                .map(|stage| Stage { clip: 0.0, quality: 0.0, ..stage.clone() })
                .collect(),
            ..refl
        },
    }
}

/// Copies that later steps of an optimiser do not change.
fn owned(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
}
