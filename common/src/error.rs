//! The one error type of the workspace.
//!
//! A message is one sentence that names the file, row or tensor, what was found, what was
//! expected and what to do. [`Error::exit_code`] maps each kind to the process exit code.

use std::path::{Path, PathBuf};

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by who has to act on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Wrong arguments or configuration. Exit code 2.
    #[error("{0}")]
    Usage(String),

    /// A data file or value that does not hold what it should. Exit code 3.
    #[error("{0}")]
    Data(Box<DataError>),

    /// An asset that is absent, or a model file that is invalid. Exit code 4.
    #[error("{what}: {problem}; {remedy}")]
    Asset {
        /// Asset id or file.
        what: String,
        /// What was found, against what was expected.
        problem: String,
        /// What the user can do about it.
        remedy: String,
    },

    /// LLM output that is unusable beyond the allowed share. Exit code 5.
    #[error("{0}")]
    LlmOutput(String),

    /// A file could not be read or written. Exit code 6.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// A bench result outside its tolerance. Exit code 7.
    #[error("{0}")]
    Tolerance(String),

    /// A failure that may pass: an endpoint is down or overloaded. Exit code 75.
    #[error("{0}; finished work is kept, run the same command again to continue")]
    Temporary(String),

    /// Stopped by a signal (2 or 15); the run can be resumed. Exit code 128 + signal.
    #[error("interrupted by signal {0}; run again with --resume to continue")]
    Interrupted(i32),

    /// A tensor operation failed: a shape or type error inside the program. Exit code 101.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),

    /// A broken invariant of the program. Exit code 101.
    #[error("bug: {0}")]
    Bug(String),
}

/// Where a bad value stands, what it is and what it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataError {
    /// The file, when there is one.
    pub path: Option<PathBuf>,
    /// 1-based row, counted as an editor counts lines (a header is row 1).
    pub row: Option<u64>,
    /// Column or field name.
    pub column: Option<String>,
    /// What was found.
    pub found: String,
    /// What was expected, and what to do about it.
    pub expected: String,
}

impl std::fmt::Display for DataError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut place = Vec::new();
        if let Some(path) = &self.path {
            place.push(path.display().to_string());
        }
        if let Some(row) = self.row {
            place.push(format!("row {row}"));
        }
        if let Some(column) = &self.column {
            place.push(format!("column {column}"));
        }
        if !place.is_empty() {
            write!(f, "{}: ", place.join(", "))?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

impl From<DataError> for Error {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<tokenizers::Error> for Error {
    fn from(error: tokenizers::Error) -> Self {
        Self::asset("tokenizer", error.to_string(), "use the tokenizer that belongs to the model")
    }
}

impl Error {
    /// Wrong arguments or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// A bad value without a file around it.
    pub fn data(found: impl Into<String>, expected: impl Into<String>) -> Self {
        DataError { found: found.into(), expected: expected.into(), ..DataError::default() }.into()
    }

    /// An absent asset or an invalid model file.
    pub fn asset(
        what: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Asset { what: what.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// A read or write error of `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// Puts `path` into a data error that does not name its file yet.
    pub fn in_file(mut self, path: &Path) -> Self {
        if let Self::Data(error) = &mut self {
            error.path.get_or_insert_with(|| path.to_path_buf());
        }
        self
    }

    /// The exit code of a process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data(_) => 3,
            Self::Asset { .. } => 4,
            Self::LlmOutput(_) => 5,
            Self::Io { .. } => 6,
            Self::Tolerance(_) => 7,
            Self::Temporary(_) => 75,
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(130),
            Self::Tensor(_) | Self::Bug(_) => 101,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_error_names_the_place() {
        let error = Error::from(DataError {
            path: Some("votes.csv".into()),
            row: Some(7),
            column: Some("label".into()),
            found: "\"Tops\"".into(),
            expected: "one of the 6 labels of department".into(),
        });
        assert_eq!(
            error.to_string(),
            "votes.csv, row 7, column label: found \"Tops\", expected one of the 6 labels of department"
        );
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn exit_codes_follow_the_design() {
        assert_eq!(Error::usage("x").exit_code(), 2);
        assert_eq!(Error::asset("a", "b", "c").exit_code(), 4);
        assert_eq!(Error::io(Path::new("f"))(std::io::Error::other("full")).exit_code(), 6);
        assert_eq!(Error::Temporary("down".into()).exit_code(), 75);
        assert_eq!(Error::Interrupted(15).exit_code(), 143);
        assert_eq!(Error::Interrupted(2).exit_code(), 130);
    }

    #[test]
    fn in_file_keeps_a_path_that_is_there() {
        let error = Error::data("1", "2").in_file(Path::new("a")).in_file(Path::new("b"));
        assert!(error.to_string().starts_with("a: "));
    }
}
