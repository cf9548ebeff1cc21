//! Decoding constrained to a JSON schema, with llguidance.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Longer tokens are never offered: none is needed to write JSON.
const MAX_TOKEN_BYTES: usize = 255;

/// What the masks of all schemas share: the vocabulary as a tree of bytes.
pub(super) struct Grammars(ParserFactory);

impl Grammars {
    /// `end_tokens` end an answer; there must be at least one.
    pub(super) fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self> {
        let size = tokenizer.vocabulary_size();
        let words: Vec<Vec<u8>> = (0..size as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                if bytes.len() > MAX_TOKEN_BYTES {
                    Vec::new()
                } else if tokenizer.is_special(id) {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
                } else {
                    bytes.to_vec()
                }
            })
            .collect();
        let Some(&end) = end_tokens.first() else {
            return Err(Error::asset(
                "tokenizer",
                "it names no token that ends an answer, which constrained decoding needs",
                "use a model whose metadata names its EOS token",
            ));
        };
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, end), &words);
        let env: TokEnv = Arc::new(Vocabulary(trie.with_eos_tokens(end_tokens)));
        let mut factory = ParserFactory::new(
            &env,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::json_slices(),
        )
        .map_err(|error| Error::Bug(format!("token masks: {error}")))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self(factory))
    }

    /// A matcher at the beginning of a JSON text of `schema`. White space is fixed, because a
    /// model that may write any amount of it often does nothing else.
    pub(super) fn json(&self, schema: &Value) -> Result<Matcher> {
        let mut schema = schema.clone();
        if let Some(object) = schema.as_object_mut() {
            object.insert(
                "x-guidance".to_owned(),
                json!({
                    "whitespace_flexible": false,
                    "item_separator": ", ",
                    "key_separator": ": ",
                }),
            );
        }
        let parser = self.0.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(problem) => {
                let problem: String = problem.chars().take(300).collect();
                Err(Error::usage(format!("JSON schema: {problem}; write it without that")))
            }
            None => Ok(matcher),
        }
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }
}
