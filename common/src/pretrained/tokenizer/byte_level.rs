//! GPT-2's printable alphabet for bytes: how byte-level BPE vocabularies spell their tokens.

/// The character that stands for `byte`: itself when it is printable in Latin-1, else one of the
/// characters from U+0100 on, in order.
pub(super) fn spelling(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count();
    // At most 68 bytes are not printable, so the sum stays below the surrogates.
    char::from_u32(0x100 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The reverse of [`spelling`] for whole tokens.
pub(super) struct Decoder {
    /// By code point; the alphabet ends at U+0143.
    bytes: [Option<u8>; 0x144],
}

impl Decoder {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for byte in 0..=u8::MAX {
            bytes[spelling(byte) as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// The bytes of a token; one that is not spelled in the alphabet stands for its own text.
    pub(super) fn decode(&self, token: &str) -> Vec<u8> {
        token
            .chars()
            .map(|c| self.bytes.get(c as usize).copied().flatten())
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_else(|| token.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_is_gpt2s() {
        assert_eq!(spelling(b'a'), 'a');
        assert_eq!(spelling(b' '), 'Ġ');
        assert_eq!(spelling(b'\n'), 'Ċ');
        assert_eq!(spelling(0xad), '\u{143}');
        let decoder = Decoder::new();
        for byte in 0..=u8::MAX {
            assert_eq!(decoder.decode(&spelling(byte).to_string()), [byte]);
        }
        assert_eq!(decoder.decode("Ġcaf\u{c3}\u{a9}"), " café".as_bytes());
        assert_eq!(decoder.decode("漢"), "漢".as_bytes());
    }
}
