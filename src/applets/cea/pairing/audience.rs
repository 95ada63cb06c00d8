//! Who watches a pairing: a person or a script in the foreground, or the parent of a background process.

use std::io::BufRead as _;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::applets::AppError;
use crate::applets::detach::{self, READY};
use crate::core::pairing::code::{CodeKind, PairingCode};
use crate::core::types::ReqId;
use crate::{complain, say};

/// How long the person may take to compare two codes.
const ASK_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
pub(super) struct Audience {
    parent: bool,
    /// A person can be asked.
    person: bool,
}

impl Audience {
    pub(super) fn of_terminal(person: bool) -> Self {
        Self {
            parent: false,
            person,
        }
    }

    pub(super) fn of_parent() -> Self {
        Self {
            parent: true,
            person: false,
        }
    }

    pub(super) fn has_person(self) -> bool {
        self.person
    }

    pub(super) fn progress(self, text: &str) {
        if !self.parent {
            say!("{text}");
        }
    }

    pub(super) fn warn(self, text: &str) {
        complain!("Warning: {text}");
    }

    /// Shows the code. In the background the id goes to the parent, the code to stderr, and nobody hears of us afterwards.
    ///
    /// # Errors
    /// The process cannot detach.
    pub(super) fn announce(
        self,
        reqid: &ReqId,
        code: PairingCode,
        kind: CodeKind,
    ) -> Result<(), AppError> {
        if kind == CodeKind::Basic {
            self.warn(
                "the dispatcher is an older release: its pairing code (basic) does not protect against an active attacker between the two hosts",
            );
        }
        if self.parent {
            complain!("Pairing code: {code} ({kind})");
            say!("{READY}{reqid}");
            return detach::cut_loose();
        }
        // The line is read by scripts: six digits and nothing else.
        say!("Pairing code: {code}");
        say!("Kind of code: {kind}");
        say!("Request id:   {reqid}");
        say!(
            "Compare code and kind with what the dispatcher shows (ced list-requests), then approve there. Waiting..."
        );
        Ok(())
    }

    /// Asks whether the codes agree. False also when nobody answers.
    pub(super) async fn ask(self, code: PairingCode, kind: CodeKind) -> bool {
        say!("The dispatcher has approved. Nothing is stored yet.");
        say!("Did the dispatcher show the code {code} ({kind}) for this host? [y/N]: ");
        let (sender, answer) = oneshot::channel();
        // A blocking read cannot be cancelled, so nothing waits for this thread.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            let _ = sender.send(read.map(|_| line).unwrap_or_default());
        });
        let line = match tokio::time::timeout(ASK_TIMEOUT, answer).await {
            Ok(Ok(line)) => line,
            _ => String::new(),
        };
        matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
    }
}
