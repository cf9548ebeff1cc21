//! A little-endian reader over a byte slice that never reads past its end and never allocates.

/// Why a read failed; the caller adds the file and the place.
pub(super) type Problem = String;

/// Position in the header of a GGUF file.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], Problem> {
        let left = self.remaining();
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                let start = self.position;
                self.position += count;
                Ok(&self.bytes[start..self.position])
            }
            _ => Err(format!(
                "{count} bytes are declared at byte {} but {left} are left",
                self.position
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string as GGUF stores it: a 64-bit length, then the bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.u64()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let mut cursor = Cursor::new(&[2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', 7]);
        assert_eq!(cursor.string(), Ok(&b"ab"[..]));
        assert_eq!(cursor.remaining(), 1);
        assert!(cursor.u32().is_err());
        assert_eq!(cursor.position(), 10, "a failed read does not move the cursor");
        assert!(cursor.take(u64::MAX).is_err());
    }
}
