//! Procedural backgrounds: wall and floor, sky and ground, by words of the setting.

use image::{Rgba, RgbaImage};

use super::Placed;

/// Colours from the top to the horizon and from the horizon to the bottom.
struct Palette {
    words: &'static [&'static str],
    upper: [[u8; 3]; 2],
    lower: [[u8; 3]; 2],
    /// Lowest height of the horizon as a share of the picture, from the top.
    horizon: f64,
}

const PALETTES: [Palette; 8] = [
    Palette {
        words: &["beach", "sea", "ocean"],
        upper: [[126, 190, 232], [214, 236, 247]],
        lower: [[238, 219, 175], [222, 196, 143]],
        horizon: 0.55,
    },
    Palette {
        words: &["park", "grass", "garden", "meadow"],
        upper: [[151, 205, 240], [228, 243, 250]],
        lower: [[154, 198, 118], [110, 162, 84]],
        horizon: 0.55,
    },
    Palette {
        words: &["night", "stage"],
        upper: [[22, 26, 58], [58, 58, 104]],
        lower: [[66, 54, 74], [42, 34, 52]],
        horizon: 0.68,
    },
    Palette {
        words: &["street", "road", "city"],
        upper: [[176, 200, 218], [226, 232, 236]],
        lower: [[150, 150, 154], [118, 118, 124]],
        horizon: 0.62,
    },
    Palette {
        words: &["kitchen", "bathroom"],
        upper: [[226, 238, 238], [242, 247, 246]],
        lower: [[206, 214, 214], [178, 190, 192]],
        horizon: 0.7,
    },
    Palette {
        words: &["party"],
        upper: [[250, 214, 226], [253, 238, 228]],
        lower: [[226, 184, 170], [206, 158, 146]],
        horizon: 0.7,
    },
    Palette {
        words: &["office", "living", "windowsill", "workshop", "room"],
        upper: [[232, 226, 214], [245, 241, 233]],
        lower: [[196, 164, 128], [166, 132, 98]],
        horizon: 0.7,
    },
    Palette {
        words: &[],
        upper: [[236, 238, 242], [250, 250, 252]],
        lower: [[232, 233, 238], [214, 216, 224]],
        horizon: 0.72,
    },
];

/// The palette of a setting; a plain studio when no word is known.
fn palette(setting: &str) -> &'static Palette {
    let setting = setting.to_lowercase();
    let fits = |palette: &&Palette| palette.words.iter().any(|word| setting.contains(word));
    PALETTES.iter().find(fits).unwrap_or(&PALETTES[PALETTES.len() - 1])
}

/// Height of the horizon in pixels from the top: that of the setting, or higher, so that the largest
/// object stands on the ground.
pub fn horizon(setting: &str, height: u32, placed: &[Placed]) -> f64 {
    const BEHIND: f64 = 0.06;
    let height = f64::from(height);
    let area = |object: &&Placed| object.image.width() * object.image.height();
    let largest = placed.iter().max_by_key(area);
    let foot = largest.map_or(1.0, |object| object.foot() / height);
    palette(setting).horizon.min(foot - BEHIND).max(0.25) * height
}

/// The background of a setting with its horizon at that height.
pub fn paint(setting: &str, width: u32, height: u32, horizon: f64) -> RgbaImage {
    let palette = palette(setting);
    RgbaImage::from_fn(width, height, |_, y| {
        let y = f64::from(y) + 0.5;
        let (colors, share) = if y < horizon {
            (&palette.upper, y / horizon)
        } else {
            (&palette.lower, (y - horizon) / (f64::from(height) - horizon))
        };
        let mix = |channel: usize| {
            let [a, b] = [colors[0][channel], colors[1][channel]].map(f64::from);
            (a + (b - a) * share).round() as u8
        };
        Rgba([mix(0), mix(1), mix(2), 255])
    })
}
