//! Carrying the change out: files, registry, messages.

use std::path::PathBuf;

use super::state::{Phase, State, StateError};
use crate::core::client::fleet::Network;
use crate::core::client::open::{self, ClientError};
use crate::core::clock::{self, Clock};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::durable::{self, DurableError};
use crate::core::keyring::{self, PairStore};
use crate::core::logging::Action;
use crate::core::pki::ca::{self, CaError};
use crate::core::pki::cert::CertError;
use crate::core::pki::{Authority, Certificate, KeyType};
use crate::core::registry::{AgentRecord, Registry, RegistryError, SerialStatus};
use crate::core::revocation::Revocations;
use crate::core::rotation::{self, Issuer, Rotation, RotationError};
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::types::{self, AgentName, Serial};

const MAX_KEY: u64 = 64 * 1024;
/// The key of the old CA, beside those of the new one.
const OLD_KEY: &str = "old.key";

/// Why a change cannot begin, go on or end.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "a change of the CA has been going on since {since} ({phase}): 'ced rotate-ca status' shows it"
    )]
    Begun { since: String, phase: &'static str },
    #[error("no change of the CA is going on: 'ced rotate-ca start' begins one")]
    NotBegun,
    #[error(
        "the dispatcher's certificate is being rotated, and not everybody who could be reached has been told: run 'ced maintain', then try again"
    )]
    RotationUnderWay,
    #[error(
        "not known to be able to take a new CA: {0}. Update ctrl-exec where it is too old and let 'ced maintain' reach the others first, or give hosts up with --without HOST,HOST (they must be paired again)"
    )]
    Unable(String),
    #[error(
        "not everybody has followed yet: {0}. 'ced rotate-ca status' says what is missing; --without HOST gives a host up (it must be paired again)"
    )]
    NotFollowed(String),
    #[error(
        "the new CA does not sign yet, because no agent that could be reached trusts it: run 'ced maintain' when agents answer, then finish (or take the change back with 'ced rotate-ca abort')"
    )]
    TooEarly,
    #[error(
        "the change is being taken back: 'ced maintain' goes on until every agent has dropped the new CA"
    )]
    Aborting,
    #[error(
        "too late: the new CA signs already. Finish this change; a further one can replace the CA again"
    )]
    TooLate,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the CA in the state file cannot be read: {0}")]
    Certificate(#[from] CertError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("the system gives no random bytes")]
    Random,
}

/// An agent that has not followed, and what it lacks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lagging {
    pub agent: AgentName,
    pub lacks: &'static str,
}

/// What a pass has done.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Agents that were told something, and what they said.
    pub told: Vec<(AgentName, Result<(), String>)>,
    /// The new CA signs since this pass.
    pub changed: bool,
    /// The change is over since this pass.
    pub over: bool,
}

/// A change's hands. Whoever uses it holds the lock of [`Rotation`].
#[derive(Debug)]
pub struct Change<'a, N> {
    pub config: &'a DispatcherConfig,
    pub clock: &'a Clock,
    pub network: &'a N,
}

/// What an agent lacks to have followed; `None`: nothing. Pure.
pub fn why_not(record: &AgentRecord, new: &str, present_serial: &str) -> Option<&'static str> {
    if !record.trusted_cas.iter().any(|ca| ca == new) {
        return Some("does not trust the new CA yet");
    }
    if record.serial_status != SerialStatus::Current || record.dispatcher_serial != present_serial {
        return Some("does not trust the dispatcher's new certificate yet");
    }
    if record.cert_ca.as_deref() != Some(new) {
        return Some("has a certificate of the old CA");
    }
    None
}

impl<N: Network> Change<'_, N> {
    pub(super) fn registry(&self) -> Registry {
        Registry::new(self.config.registry_dir.clone())
    }

    /// Makes the new CA and writes down that the change has begun. Agents that are known not to understand it must be in `without`; the
    /// registry says what each has last reported.
    ///
    /// # Errors
    /// One goes on already, a rotation does, agents would be lost, or files cannot be written. Then nothing has begun.
    pub fn start(
        &self,
        kind: KeyType,
        days: u32,
        without: &[AgentName],
    ) -> Result<State, ChangeError> {
        if let Some(state) = State::load(self.config)? {
            return Err(ChangeError::Begun {
                since: state.since,
                phase: state.phase.as_str(),
            });
        }
        let rotation = rotation::State::load(&self.config.rotation.file)
            .map_err(RotationError::from)?
            .unwrap_or_default();
        if rotation.next_serial.is_some() {
            return Err(ChangeError::RotationUnderWay);
        }
        let unable: Vec<String> = self
            .registry()
            .list()?
            .agents
            .into_iter()
            .filter(|a| a.trusted_cas.is_empty() && !without.contains(&a.name))
            .map(|a| match &a.version {
                Some(version) => format!("{} (runs {})", a.name, printable(version)),
                None => format!("{} (has not answered yet)", a.name),
            })
            .collect();
        if !unable.is_empty() {
            return Err(ChangeError::Unable(unable.join(", ")));
        }
        // Whoever cannot call anybody begins nothing.
        self.network.open()?;
        let old = Authority::load(&self.config.ca_dir, self.clock.clone())?;
        let new = self.next_authority(kind, days)?;
        let endorsement = old.endorse(new.certificate())?;
        let state = State {
            phase: Phase::Announcing,
            old: old.certificate().fingerprint(),
            new: new.certificate().fingerprint(),
            new_ca: new.certificate().to_pem(),
            endorsement: endorsement.to_pem(),
            since: self.clock.iso_now(),
            given_up: without.to_vec(),
            pending: Vec::new(),
        };
        state.save(&State::path(self.config))?;
        self.log("started", &state);
        Ok(state)
    }

    /// The new CA, made as it is asked for now: one that a start has left which was cut off is known to nobody. Its name is another one, so that
    /// old software tells the two apart.
    fn next_authority(&self, kind: KeyType, days: u32) -> Result<Authority, ChangeError> {
        let dir = State::next_dir(self.config);
        for left in ["ca.crt", "ca.key"] {
            durable::remove(&dir.join(left))?;
        }
        durable::create_dir(&dir, 0o700)?;
        let tag = types::hex(&types::random::<2>().map_err(|_| ChangeError::Random)?);
        let today = clock::iso(self.clock.now());
        let day = today.get(..10).unwrap_or_default();
        let cn = format!("{} {day} {tag}", ca::DEFAULT_CN);
        Ok(Authority::create(
            &dir,
            kind,
            &cn,
            days,
            self.clock.clone(),
        )?)
    }

    /// Goes on as far as it goes now. Renewals are the maintenance's business.
    ///
    /// # Errors
    /// A file cannot be read or written. What was done stays done; the next pass goes on.
    pub async fn advance(&self) -> Result<Outcome, ChangeError> {
        let mut outcome = Outcome::default();
        let Some(mut state) = State::load(self.config)? else {
            return Ok(outcome);
        };
        if state.phase == Phase::Announcing {
            self.trust(&[&state.old, &state.new], &state)?;
            self.tell_of_new(&state, &mut outcome).await?;
            if self.rotate_to_new(&state).await? {
                self.let_new_sign(&state)?;
                state.phase = Phase::Changed;
                state.save(&State::path(self.config))?;
                outcome.changed = true;
                self.log("changed", &state);
            }
        } else if state.phase == Phase::Changed {
            self.let_new_sign(&state)?;
            self.tell_of_new(&state, &mut outcome).await?;
        }
        let doomed = match state.phase {
            Phase::Withdrawing => {
                self.trust(&[&state.new], &state)?;
                state.old.clone()
            }
            Phase::Aborting => {
                self.cancel_next(&state).await?;
                self.trust(&[&state.old], &state)?;
                state.new.clone()
            }
            Phase::Announcing | Phase::Changed => return Ok(outcome),
        };
        let left = self.tell_to_drop(&doomed, &mut state, &mut outcome).await?;
        if left == 0 {
            self.clean_up(&state)?;
            outcome.over = true;
        }
        Ok(outcome)
    }

    /// Ends the change: the old CA counts for nothing any more. Agents in `without` are given up.
    ///
    /// # Errors
    /// Somebody has not followed, or the new CA does not sign yet.
    pub async fn finish(&self, without: &[AgentName]) -> Result<Outcome, ChangeError> {
        let mut state = State::load(self.config)?.ok_or(ChangeError::NotBegun)?;
        let news = state.give_up(without);
        match state.phase {
            Phase::Withdrawing if !news => {}
            Phase::Withdrawing => state.save(&State::path(self.config))?,
            Phase::Changed => {
                let lagging = self.lagging(&state)?;
                if !lagging.is_empty() {
                    let words: Vec<String> = lagging
                        .iter()
                        .map(|l| format!("{} ({})", l.agent, l.lacks))
                        .collect();
                    return Err(ChangeError::NotFollowed(words.join(", ")));
                }
                state.phase = Phase::Withdrawing;
                state.save(&State::path(self.config))?;
                self.log("withdrawing", &state);
            }
            Phase::Announcing => return Err(ChangeError::TooEarly),
            Phase::Aborting => return Err(ChangeError::Aborting),
        }
        self.advance().await
    }

    /// Takes the change back, as long as the new CA has signed nothing that is in use. Agents in `without` are not waited for.
    ///
    /// # Errors
    /// It is too late, or none goes on.
    pub async fn abort(&self, without: &[AgentName]) -> Result<Outcome, ChangeError> {
        let mut state = State::load(self.config)?.ok_or(ChangeError::NotBegun)?;
        let news = state.give_up(without);
        match state.phase {
            Phase::Aborting if !news => {}
            Phase::Aborting => state.save(&State::path(self.config))?,
            Phase::Announcing if !self.is_in_use(&state.new)? => {
                state.phase = Phase::Aborting;
                // Whoever was told and could not say so is not known to trust it: all are asked who can have understood.
                let able = |a: &AgentRecord| !a.trusted_cas.is_empty();
                let agents = self.registry().list()?.agents.into_iter();
                state.pending = agents.filter(able).map(|a| a.name).collect();
                state.save(&State::path(self.config))?;
                self.log("aborting", &state);
            }
            Phase::Announcing | Phase::Changed | Phase::Withdrawing => {
                return Err(ChangeError::TooLate);
            }
        }
        self.advance().await
    }

    /// Who has not done what this phase is about, given-up agents left out.
    ///
    /// # Errors
    /// The registry or the journal of revocations cannot be read.
    pub fn lagging(&self, state: &State) -> Result<Vec<Lagging>, ChangeError> {
        let serial = rotation::State::load(&self.config.rotation.file)
            .map_err(RotationError::from)?
            .unwrap_or_default()
            .current_serial;
        let revoked = Revocations::load(&self.config.revoked_file).map_err(ClientError::from)?;
        let agents = self.registry().list()?.agents;
        let trusts = |a: &AgentRecord, ca: &String| a.trusted_cas.contains(ca);
        Ok(agents
            .into_iter()
            .filter(|a| !state.is_given_up(a))
            .filter_map(|a| {
                let lacks = match state.phase {
                    Phase::Announcing | Phase::Changed => {
                        let lacks = why_not(&a, &state.new, &serial)?;
                        // Nobody talks to it any more, so it never follows.
                        if revoked.concerns(&a) {
                            "is revoked: unpair it, or pair it again"
                        } else {
                            lacks
                        }
                    }
                    Phase::Withdrawing if trusts(&a, &state.old) => {
                        "has not dropped the old CA yet"
                    }
                    Phase::Aborting if trusts(&a, &state.new) || state.is_pending(&a) => {
                        "has not dropped the new CA yet"
                    }
                    Phase::Withdrawing | Phase::Aborting => return None,
                };
                Some(Lagging {
                    agent: a.name,
                    lacks,
                })
            })
            .collect())
    }

    fn log(&self, status: &str, state: &State) {
        Action::new("ca-change")
            .field("NEW", &state.new)
            .field("OLD", &state.old)
            .field("STATUS", status)
            .info();
    }

    /// Files that hold CA certificates here: what agents are verified against, and what signs.
    fn ca_files(&self) -> Vec<PathBuf> {
        let signing = self.config.ca_dir.join("ca.crt");
        if signing == self.config.ca {
            vec![signing]
        } else {
            vec![self.config.ca.clone(), signing]
        }
    }

    /// Makes the CA files hold exactly these of the two CAs, the first one first (old software signs with the first), and what else they
    /// held besides the two.
    fn trust(&self, order: &[&String], state: &State) -> Result<(), ChangeError> {
        let new = Certificate::from_pem(state.new_ca.as_bytes())?;
        for path in self.ca_files() {
            let pem = secure_open::read_trusted(&path, MAX_KEY, Trust::Public)?;
            let present = Certificate::all_from_pem(&pem)?;
            let both = present.iter().chain([&new]);
            let wanted: Vec<&Certificate> = order
                .iter()
                .filter_map(|f| both.clone().find(|c| c.fingerprint() == **f))
                .chain(present.iter().filter(|c| {
                    let fingerprint = c.fingerprint();
                    fingerprint != state.old && fingerprint != state.new
                }))
                .collect();
            if wanted.iter().copied().eq(present.iter()) {
                continue;
            }
            let text: String = wanted.iter().map(|c| c.to_pem()).collect();
            durable::replace_keeping_owner(&path, text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// Whether our certificate is of this CA, or it signs.
    fn is_in_use(&self, fingerprint: &str) -> Result<bool, ChangeError> {
        let signing = Authority::load(&self.config.ca_dir, self.clock.clone())?;
        Ok(signing.certificate().fingerprint() == fingerprint || self.is_ours_of(fingerprint)?)
    }

    /// Whether the certificate at the configured path is of this CA.
    fn is_ours_of(&self, fingerprint: &str) -> Result<bool, ChangeError> {
        let cas = open::load_cas(self.config)?;
        let ours = keyring::configured_certificate(self.config);
        let now = self.clock.now();
        Ok(ours.is_ok_and(|c| {
            cas.iter()
                .any(|ca| ca.fingerprint() == fingerprint && c.verify_issued_by(ca, now).is_ok())
        }))
    }

    /// Rotates our certificate to one of the new CA. True: it is in use.
    async fn rotate_to_new(&self, state: &State) -> Result<bool, ChangeError> {
        let rotation = Rotation {
            config: self.config,
            clock: self.clock,
            network: self.network,
            issuer: Issuer::At(State::next_dir(self.config)),
        };
        let begin = !self.is_ours_of(&state.new)?;
        rotation.advance(begin).await?;
        self.is_ours_of(&state.new)
    }

    /// One rename of `ca.key`; then the order of `ca.crt`, for software that takes the first.
    fn let_new_sign(&self, state: &State) -> Result<(), ChangeError> {
        let new = Certificate::from_pem(state.new_ca.as_bytes())?;
        let signing = Authority::load(&self.config.ca_dir, self.clock.clone())?;
        if signing.certificate().der != new.der {
            let dir = State::next_dir(self.config);
            let pem = zeroize::Zeroizing::new(secure_open::read_trusted(
                &dir.join("ca.key"),
                MAX_KEY,
                Trust::Secret,
            )?);
            let key = self.config.ca_dir.join("ca.key");
            // Kept until the change is over, should anybody need it.
            let old =
                zeroize::Zeroizing::new(secure_open::read_trusted(&key, MAX_KEY, Trust::Secret)?);
            durable::replace(&dir.join(OLD_KEY), &old, 0o600)?;
            durable::replace_keeping_owner(&key, &pem, 0o600)?;
        }
        self.trust(&[&state.new, &state.old], state)
    }

    /// Takes back a certificate of the new CA that was announced and is not in use: agents that trust its serial are told to drop it.
    async fn cancel_next(&self, state: &State) -> Result<(), ChangeError> {
        let rotation = Rotation {
            config: self.config,
            clock: self.clock,
            network: self.network,
            issuer: Issuer::Present,
        };
        if !self.is_ours_of(&state.new)? {
            // One that was begun since, under the CA that stays, goes on.
            if self.is_next_of_new(state)? {
                rotation.cancel()?;
            }
            // An agent does not drop the CA of the certificate that asks it to: all must be back at the one in use first.
            rotation.advance(false).await?;
        }
        Ok(())
    }

    /// Whether the certificate that is being announced is of the new CA, or cannot be looked at.
    fn is_next_of_new(&self, state: &State) -> Result<bool, ChangeError> {
        let rotation = rotation::State::load(&self.config.rotation.file)
            .map_err(RotationError::from)?
            .unwrap_or_default();
        let Some(next) = rotation.next_serial.as_deref() else {
            return Ok(false);
        };
        let new = Certificate::from_pem(state.new_ca.as_bytes())?;
        let pair = Serial::parse_hex(next)
            .ok()
            .and_then(|serial| PairStore::of(self.config).load(&serial).ok().flatten());
        Ok(pair.is_none_or(|pair| pair.certificate().verify_signed_by(&new).is_ok()))
    }

    fn clean_up(&self, state: &State) -> Result<(), ChangeError> {
        durable::remove_dir(&State::next_dir(self.config))?;
        durable::remove_leftovers(&self.config.ca_dir.join("ca.key"))?;
        durable::remove(&State::path(self.config))?;
        self.log("over", state);
        Ok(())
    }
}
