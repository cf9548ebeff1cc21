//! Pictures as numbers: the objects drawn on white, in two styles.

use candle_core::{Device, Tensor};
use common::{Result, emoji};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::World;

/// The art style that a prompt ends with (§3.1 step 4 of the specification).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// As drawn.
    #[default]
    Colour,
    /// Brightness only.
    Grey,
}

impl Style {
    /// All styles.
    pub const ALL: [Self; 2] = [Self::Colour, Self::Grey];

    /// The word that a prompt ends with.
    pub fn word(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Grey => "grey",
        }
    }
}

/// The pictures of all objects, `[objects, 3, size, size]` in -1..1, channels first.
#[derive(Debug, Clone)]
pub struct Images {
    size: usize,
    colour: Vec<Vec<f32>>,
}

impl Images {
    /// Draws every object of the world on white at `size` × `size`.
    ///
    /// # Errors
    /// Those of [`emoji::Picture::render`].
    pub fn draw(world: &World, size: usize) -> Result<Self> {
        let draw = |picture: &emoji::Picture| {
            let image = picture.render(size as u32)?;
            let mut values = vec![0.0; 3 * size * size];
            for (at, pixel) in image.pixels().enumerate() {
                let [colour @ .., alpha] = pixel.0;
                let alpha = f32::from(alpha) / 255.0;
                for (channel, value) in colour.into_iter().enumerate() {
                    let shown = f32::from(value) / 255.0 * alpha + (1.0 - alpha);
                    values[channel * size * size + at] = 2.0 * shown - 1.0;
                }
            }
            Ok(values)
        };
        let colour =
            world.objects.par_iter().map(|object| draw(&object.picture)).collect::<Result<_>>()?;
        Ok(Self { size, colour })
    }

    /// Pixels of a side.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.colour.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.colour.is_empty()
    }

    /// The values of one object's picture, `[3, size, size]`.
    pub fn values(&self, object: usize, style: Style) -> Vec<f32> {
        let colour = &self.colour[object];
        match style {
            Style::Colour => colour.clone(),
            Style::Grey => grey(colour),
        }
    }

    /// A batch `[n, 3, size, size]`.
    pub fn batch(&self, chosen: &[(usize, Style)]) -> Result<Tensor> {
        let values: Vec<f32> =
            chosen.iter().flat_map(|&(object, style)| self.values(object, style)).collect();
        Ok(Tensor::from_vec(values, (chosen.len(), 3, self.size, self.size), &Device::Cpu)?)
    }
}

/// Brightness (ITU-R BT.601) in all three channels.
fn grey(colour: &[f32]) -> Vec<f32> {
    let area = colour.len() / 3;
    let level =
        |at: usize| 0.299 * colour[at] + 0.587 * colour[area + at] + 0.114 * colour[2 * area + at];
    let one: Vec<f32> = (0..area).map(level).collect();
    [&one[..], &one, &one].concat()
}
