//! Exit codes: a type and one table (spec/operations.md 12, with fixed codes where the original leaks an errno).

use std::process::ExitCode;

/// Every status that a program of this binary ends with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// Done.
    Success,
    /// It ran, and the answer is no: a host failed, a request was denied, a file could not be written.
    Failure,
    /// A deadline passed (background pairing; `ced wait`).
    TimedOut,
    /// `ctrl-exec-exec resolve` cannot read what it would decide by.
    Unresolved,
    /// The other side said no (background pairing).
    Denied,
    /// The words on the command line make no sense (`EX_USAGE`).
    Usage,
    /// The configuration makes no sense, or the host is not paired (`EX_CONFIG`): restarting will not help.
    Config,
    /// `ced health`, in the numbers of monitoring plugins: something wants looking at.
    Warning,
    /// `ced health`: something is broken.
    Critical,
    /// `ced health`: it cannot be told.
    Unknown,
    /// That of the script (`ctrl-exec-exec try`), or of the program that a container is about.
    Script(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure | Self::Warning => 1,
            Self::TimedOut | Self::Unresolved | Self::Critical => 2,
            Self::Denied | Self::Unknown => 3,
            Self::Usage => 64,
            Self::Config => 78,
            Self::Script(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a program ends early: the sentence for the person in front of it, and the status for the script behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppError {
    exit: Exit,
    message: Option<String>,
}

impl AppError {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The configuration is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Anything else went wrong.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failure, message)
    }

    /// Not an error: the text that somebody has asked for instead of work.
    pub fn help(text: impl Into<String>) -> Self {
        Self::new(Exit::Success, text)
    }

    /// Everything has been said already.
    pub fn silent(exit: Exit) -> Self {
        Self {
            exit,
            message: None,
        }
    }

    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: Some(message.into()),
        }
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}
