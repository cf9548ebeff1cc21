//! Pictures: reading with limits, and resizing.

use std::io::Cursor;
use std::path::Path;

use common::{Error, Result};

/// Largest side of a picture file that is read.
const MAX_SIDE: u32 = 8192;
/// Largest file.
const MAX_BYTES: u64 = 64 << 20;

/// An RGB picture, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// From pixels row by row.
    ///
    /// # Errors
    /// [`Error::Bug`] when there are not `3 · width · height` values, or none.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 || rgb.len() != 3 * width * height {
            return Err(Error::Bug(format!("{} values for {width} × {height} pixels", rgb.len())));
        }
        Ok(Self { width, height, rgb })
    }

    /// Reads a PNG or JPEG file; transparency becomes white.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is damaged, cut off, of another kind or larger than 8,192
    /// pixels a side or 64 MB; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        let bad = |found: String| {
            Error::data(found, "a whole PNG or JPEG of at most 8192 × 8192 pixels and 64 MB")
                .in_file(path)
        };
        if size > MAX_BYTES {
            return Err(bad(format!("{} MB", size >> 20)));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let mut reader = image::ImageReader::new(Cursor::new(&bytes))
            .with_guessed_format()
            .map_err(|error| bad(error.to_string()))?;
        let mut limits = image::Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(512 << 20);
        reader.limits(limits);
        let decoded = reader
            .decode()
            .map_err(|error| bad(format!("a picture that can't be read ({error})")))?;
        let rgba = decoded.to_rgba8();
        let (width, height) = (rgba.width() as usize, rgba.height() as usize);
        let rgb = rgba
            .pixels()
            .flat_map(|pixel| {
                let [r, g, b, a] = pixel.0.map(u32::from);
                [r, g, b].map(|v| ((v * a + 255 * (255 - a)) / 255) as u8)
            })
            .collect();
        Self::new(width, height, rgb).map_err(|_| bad("a picture without pixels".into()))
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue of a pixel.
    ///
    /// # Panics
    /// Outside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * self.width + x);
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Bilinear with the area of a shrunken pixel averaged (triangle filter), to any size.
    pub fn resized(&self, width: usize, height: usize) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let buffer =
            image::RgbImage::from_raw(self.width as u32, self.height as u32, self.rgb.clone())
                .unwrap_or_default();
        let filter = image::imageops::FilterType::Triangle;
        let small = image::imageops::resize(&buffer, width as u32, height as u32, filter);
        Self { width, height, rgb: small.into_raw() }
    }

    /// The square from the middle of the picture after its shorter side was brought to `side`.
    pub fn centre_square(&self, side: usize) -> Self {
        let short = self.width.min(self.height).max(1);
        let scaled = |length: usize| (length * side).div_ceil(short).max(side);
        let resized = self.resized(scaled(self.width), scaled(self.height));
        let (left, top) = ((resized.width - side) / 2, (resized.height - side) / 2);
        let mut rgb = Vec::with_capacity(3 * side * side);
        for y in top..top + side {
            for x in left..left + side {
                rgb.extend(resized.pixel(x, y));
            }
        }
        Self { width: side, height: side, rgb }
    }

    /// PNG bytes.
    ///
    /// # Errors
    /// None but bugs.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(
            &mut bytes,
            &self.rgb,
            self.width as u32,
            self.height as u32,
            image::ExtendedColorType::Rgb8,
            image::ImageFormat::Png,
        )
        .map_err(|error| Error::Bug(error.to_string()))?;
        Ok(bytes.into_inner())
    }
}
