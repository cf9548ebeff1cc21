//! The trainable tensors of a model by name: drawn from a seed or taken from a file.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Shape, Tensor, Var};

use crate::rng::Seed;
use crate::{Error, Result};

/// Named trainable tensors (f32, CPU), in the order in which the model asked for them.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: Vec<(String, Var)>,
}

impl Parameters {
    /// Name and variable of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of values in all tensors.
    pub fn elements(&self) -> usize {
        self.entries.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, var)| var)
    }

    /// Those whose name `keep` accepts; they stay the same variables.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        let entries = self.entries.iter().filter(|(name, _)| keep(name)).cloned().collect();
        Self { entries }
    }

    /// All of both; a name may occur once only.
    pub fn join(mut self, other: Self) -> Result<Self> {
        for (name, var) in other.entries {
            self.insert(name, var)?;
        }
        Ok(self)
    }

    pub(crate) fn insert(&mut self, name: String, var: Var) -> Result<()> {
        if self.get(&name).is_some() {
            return Err(Error::Bug(format!("two parameters are called {name}")));
        }
        self.entries.push((name, var));
        Ok(())
    }

    /// The values by name, sharing memory with the variables: copy what must not change later.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.entries.iter().map(|(name, var)| (name.clone(), var.as_tensor().detach())).collect()
    }

    /// Overwrites every variable with the tensor of its name. Refuses absent names and other
    /// shapes before anything is changed; names that no variable has are ignored.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let found = self
            .iter()
            .map(|(name, var)| Ok((var, take(tensors, name, var.shape())?)))
            .collect::<Result<Vec<_>>>()?;
        found.into_iter().try_for_each(|(var, tensor)| Ok(var.set(&tensor)?))
    }
}

/// A tensor of that name and shape as f32.
fn take(tensors: &BTreeMap<String, Tensor>, name: &str, shape: &Shape) -> Result<Tensor> {
    let remedy = "use weights that belong to this configuration";
    let Some(tensor) = tensors.get(name) else {
        let nearest = tensors
            .keys()
            .min_by_key(|known| strsim::levenshtein(known, name))
            .map_or_else(|| "none".to_owned(), Clone::clone);
        let problem = format!("no tensor of that name, the nearest is {nearest}");
        return Err(Error::asset(format!("tensor {name}"), problem, remedy));
    };
    if tensor.shape() != shape {
        let problem = format!("shape {:?}, expected {:?}", tensor.dims(), shape.dims());
        return Err(Error::asset(format!("tensor {name}"), problem, remedy));
    }
    Ok(tensor.to_dtype(DType::F32)?)
}

/// How a new tensor is drawn. The distributions are PyTorch's; the numbers are `common::rng`'s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All the same value.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in `±bound`.
    Uniform(f64),
}

impl Init {
    /// `nn.Linear` and `nn.Conv2d`, weight and bias: uniform in `±1/√fan_in`.
    pub fn fan_in(fan_in: usize) -> Self {
        Self::Uniform(if fan_in == 0 { 0.0 } else { 1.0 / (fan_in as f64).sqrt() })
    }
}

/// Where a model's tensors come from.
#[derive(Debug)]
enum Source {
    Seed(Seed),
    Tensors(BTreeMap<String, Tensor>),
}

/// Hands a model its tensors while it is built, and keeps them as [`Parameters`].
///
/// Each tensor has its own random stream, named after it, so adding a layer changes no other.
#[derive(Debug)]
pub struct Builder {
    source: Source,
    made: Parameters,
    prefix: String,
    frozen: bool,
}

impl Builder {
    /// New tensors from `seed`.
    pub fn seeded(seed: Seed) -> Self {
        Self::from_source(Source::Seed(seed))
    }

    /// Given tensors, of which every one that the model asks for must be there.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>) -> Self {
        Self::from_source(Source::Tensors(tensors))
    }

    fn from_source(source: Source) -> Self {
        Self { source, made: Parameters::default(), prefix: String::new(), frozen: false }
    }

    /// Gives the model constants: a pass records nothing for a backward pass and keeps no
    /// intermediate results.
    pub fn frozen(self) -> Self {
        Self { frozen: true, ..self }
    }

    /// Runs `build` with `name.` put before all names.
    pub fn within<T>(
        &mut self,
        name: impl std::fmt::Display,
        build: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let outer = self.prefix.len();
        self.prefix.push_str(&format!("{name}."));
        let built = build(self);
        self.prefix.truncate(outer);
        built
    }

    /// The tensor `name` of `shape`.
    pub fn tensor(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let (name, shape) = (format!("{}{name}", self.prefix), shape.into());
        let values = match &self.source {
            Source::Tensors(tensors) => take(tensors, &name, &shape)?,
            Source::Seed(seed) => {
                let mut stream = seed.stream(&format!("init/{name}"));
                match init {
                    Init::Constant(value) => Tensor::full(value as f32, shape, &Device::Cpu)?,
                    Init::Normal(sd) => stream.normal_tensor(shape, sd)?,
                    Init::Uniform(bound) => stream.uniform_tensor(shape, -bound, bound)?,
                }
            }
        };
        // an own copy: a variable must not share memory with the source
        let var = Var::from_tensor(&values.contiguous()?.copy()?)?;
        let tensor = match self.frozen {
            true => var.as_tensor().detach(),
            false => var.as_tensor().clone(),
        };
        self.made.insert(name, var)?;
        Ok(tensor)
    }

    /// The tensors that were asked for.
    pub fn finish(self) -> Parameters {
        self.made
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_depends_on_its_name_only() {
        let build = |names: &[&str]| {
            let mut builder = Builder::seeded(Seed::new(1));
            for name in names {
                builder.within("layer", |b| b.tensor(name, (2, 3), Init::Normal(1.0))).unwrap();
            }
            builder.finish()
        };
        let values = |p: &Parameters| p.get("layer.b").unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(&build(&["b"])), values(&build(&["a", "b"])));
    }

    #[test]
    fn given_tensors_are_checked() {
        let mut made = Builder::seeded(Seed::new(1));
        made.tensor("weight", (2, 3), Init::fan_in(3)).unwrap();
        let tensors = made.finish().tensors();
        let error = |name: &str, shape: (usize, usize)| {
            Builder::from_tensors(tensors.clone())
                .tensor(name, shape, Init::Constant(0.0))
                .unwrap_err()
                .to_string()
        };
        assert!(error("weigth", (2, 3)).contains("nearest is weight"));
        assert!(error("weight", (3, 2)).contains("shape [2, 3], expected [3, 2]"));
    }

    #[test]
    fn uniform_bounds_follow_the_fan_in() {
        let mut builder = Builder::seeded(Seed::new(3));
        let weight = builder.tensor("w", (100, 25), Init::fan_in(25)).unwrap();
        let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|v| v.abs() <= 0.2));
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 2500.0;
        assert!((variance - 0.04 / 3.0).abs() < 0.001, "{variance}");
    }
}
