//! Carrying out steps: files, registry, messages.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::decide::{Agent, Kept, Step, Tried, View, decide};
use super::state::{self, Retiring, State, StateError};
use crate::core::client::fanout::fan_out;
use crate::core::client::fleet::{self, Fleet, Network, Reply};
use crate::core::client::open::{self, ClientError};
use crate::core::clock::{self, Clock};
use crate::core::config::DispatcherConfig;
use crate::core::durable::{self, DurableError, Lock, Owner};
use crate::core::keyring::{self, KeyringError, PairStore, names_serial};
use crate::core::logging::Action;
use crate::core::pki::ca::CaError;
use crate::core::pki::keys::KeyError;
use crate::core::pki::{Authority, Certificate, KeyType, PrivateKey};
use crate::core::registry::{AgentRecord, Registry, RegistryError, SerialStatus, Target};
use crate::core::revocation::{RevocationError, Revocations};
use crate::core::tls::{Identity, TlsError};
use crate::core::types::{AgentName, Serial};

const DAY: i64 = 86_400;
/// More steps than any rotation has; a loop would be our bug, and must end.
const MAX_STEPS: usize = 1000;

/// Why a rotation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("dispatcher cert not found at {}", .0.display())]
    NoCertificate(PathBuf),
    #[error("cannot read cert expiry from {}: {reason}", .path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("cert generation failed: {0}")]
    Ca(#[from] CaError),
    #[error("cert generation failed: {0}")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Identity(#[from] TlsError),
    #[error(
        "the pair of serial {0} is not kept any more: start the rotation anew (ced rotate-cert)"
    )]
    PairLost(Serial),
    #[error("the rotation does not come to an end: this is a bug, please report it")]
    Endless,
}

/// Whose CA signs the new certificate: the directory of its files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Issuer {
    /// The CA that signs for agents.
    Present,
    /// Another directory with `ca.key` and `ca.crt`: the CA that is about to take over.
    At(PathBuf),
}

/// What one agent said to the new serial.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announced {
    pub agent: AgentName,
    pub result: Result<(), String>,
}

/// What a pass has done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The new serial, if a rotation has begun.
    pub began: Option<Serial>,
    /// The serial that is at the configured paths since this pass.
    pub promoted: Option<Serial>,
    pub announced: Vec<Announced>,
    pub stale: Vec<AgentName>,
    /// Agents that have dropped an old serial.
    pub withdrawn: Vec<AgentName>,
    pub withdraw_failed: Vec<(AgentName, String)>,
    /// The state as it is now.
    pub state: Option<State>,
}

/// A rotation's hands. Whoever calls [`advance`](Self::advance) holds the [`lock`](Self::lock).
#[derive(Debug)]
pub struct Rotation<'a, N> {
    pub config: &'a DispatcherConfig,
    pub clock: &'a Clock,
    pub network: &'a N,
    pub issuer: Issuer,
}

impl<N: Network> Rotation<'_, N> {
    /// One maintenance at a time: timer, operator, and other hosts that share the files.
    ///
    /// # Errors
    /// Somebody else held it all the time.
    pub fn lock(config: &DispatcherConfig, patience: Duration) -> Result<Lock, DurableError> {
        if let Some(dir) = config.rotation.file.parent() {
            durable::create_dir(dir, 0o750)?;
        }
        Lock::exclusive(&State::lock_path(&config.rotation.file), 0o660, patience)
    }

    /// Whole days that the configured certificate still lasts, and the number of days at which it is rotated: `cert_renewal_days`, but
    /// never more than half of its life, or every pass would rotate.
    ///
    /// # Errors
    /// There is no certificate, or it cannot be read.
    pub fn days_left(&self) -> Result<(i64, i64), RotationError> {
        let main = self.main()?;
        let left = (main.not_after - self.clock.now()) / DAY;
        let half_life = (main.not_after - main.not_before) / DAY / 2;
        let threshold = i64::from(self.config.rotation.renewal_days).min(half_life);
        Ok((left, threshold))
    }

    fn main(&self) -> Result<Certificate, RotationError> {
        let path = &self.config.cert;
        if !path.exists() {
            return Err(RotationError::NoCertificate(path.clone()));
        }
        keyring::configured_certificate(self.config).map_err(|reason| RotationError::Certificate {
            path: path.clone(),
            reason,
        })
    }

    /// Goes on from wherever the last pass, or a crash, has left things, as far as it goes now; with `begin`, begins a rotation unless one is
    /// being announced.
    ///
    /// # Errors
    /// A file cannot be read or written, or nothing can be signed. What was done stays done; the next pass goes on.
    pub async fn advance(&self, begin: bool) -> Result<Report, RotationError> {
        self.advance_for(begin, None).await
    }

    /// The same, calling only these agents.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub async fn advance_for(
        &self,
        begin: bool,
        only: Option<HashSet<AgentName>>,
    ) -> Result<Report, RotationError> {
        let mut report = Report::default();
        let mut tried = Tried {
            only,
            ..Tried::default()
        };
        let mut wanted = begin;
        for _ in 0..MAX_STEPS {
            let view = self.view(wanted)?;
            let Some(step) = decide(&view, &tried) else {
                report.state = State::load(&self.config.rotation.file)?;
                return Ok(report);
            };
            match step {
                Step::Begin => {
                    wanted = false;
                    report.began = Some(self.begin(&view)?);
                }
                Step::MarkPending(names) => {
                    tried.marked = true;
                    let now = self.clock.iso_now();
                    self.registry().update_many(names, |record| {
                        record.serial_status = SerialStatus::Pending;
                        record.serial_broadcast.clone_from(&now);
                    })?;
                }
                Step::Announce { serial, agents } => {
                    tried.announced.extend(agents.iter().cloned());
                    let told = self.announce(&serial, agents).await?;
                    report.announced.extend(told);
                }
                Step::Promote { serial } => {
                    self.promote(&view, &serial)?;
                    report.promoted = Some(serial);
                    // One that was under way is the one that is wanted: not a second one on top of it.
                    wanted = false;
                }
                Step::Repair { serial } => self.place(&serial)?,
                Step::MarkStale(names) => {
                    tried.stale = true;
                    self.mark_stale(&names)?;
                    report.stale = names;
                }
                Step::Withdraw {
                    old,
                    present,
                    agents,
                } => {
                    let asked = agents.iter().cloned().map(|agent| (old.clone(), agent));
                    tried.retired.extend(asked);
                    self.withdraw(&view, &old, &present, agents, &mut report)
                        .await?;
                }
                Step::Settle { old } => self.settle(&old)?,
                Step::Forget { serial } => PairStore::of(self.config).remove(&serial)?,
            }
        }
        Err(RotationError::Endless)
    }

    /// Takes back a rotation that is being announced: its serial is withdrawn from everybody who has heard of it, and its pair forgotten.
    ///
    /// # Errors
    /// The state cannot be read or written.
    pub fn cancel(&self) -> Result<(), RotationError> {
        let mut state = self.state()?;
        let Some(next) = state.next_serial.take() else {
            return Ok(());
        };
        state.next_since = None;
        let agents = self.registry().list()?.agents;
        state.retiring.retain(|r| r.serial != next);
        state.retiring.push(Retiring {
            serial: next,
            until: clock::iso(self.clock.now().saturating_sub(1)),
            pending: agents.into_iter().map(|a| a.name).collect(),
        });
        self.save(&state)
    }

    fn registry(&self) -> Registry {
        Registry::new(self.config.registry_dir.clone())
    }

    fn state(&self) -> Result<State, RotationError> {
        Ok(State::load(&self.config.rotation.file)?.unwrap_or_default())
    }

    fn save(&self, state: &State) -> Result<(), RotationError> {
        Ok(state.save(&self.config.rotation.file)?)
    }

    fn overlap(&self) -> i64 {
        i64::from(self.config.rotation.overlap_days) * DAY
    }

    fn view(&self, wanted: bool) -> Result<View, RotationError> {
        let mut state = self.state()?;
        let mut records = self.registry().list()?.agents;
        // Nothing is ever said to them again, so nothing is kept for them either.
        let revoked = Revocations::load(&self.config.revoked_file)?;
        records.retain(|record| !revoked.concerns(record));
        if state.adopt_previous(records.iter().map(|r| r.name.clone())) {
            self.save(&state)?;
        }
        let store = PairStore::of(self.config);
        let mut kept = Vec::new();
        for serial in store.list()? {
            // One that cannot be used is told by the keyring, and neither used nor removed here.
            if let Ok(Some(identity)) = store.load(&serial) {
                kept.push((serial, identity.certificate().clone()));
            }
        }
        let main = self.main().ok();
        if main.is_none() && wanted {
            self.main()?;
        }
        let announced = state
            .next_serial
            .as_deref()
            .and_then(|text| Serial::parse_hex(text).ok())
            .and_then(|serial| kept.iter().find(|(s, _)| *s == serial))
            .map(|(_, certificate)| certificate)
            .or(main.as_ref());
        let can_follow = self.can_follow(announced);
        let agents = records
            .iter()
            .map(|record| Agent::of(record, can_follow(record)))
            .collect();
        drop(can_follow);
        Ok(View {
            main: main.as_ref().map(|c| c.serial.clone()),
            main_fits: Identity::load(&self.config.cert, &self.config.key).is_ok(),
            agents,
            kept: kept
                .into_iter()
                .map(|(serial, certificate)| Kept {
                    serial,
                    not_after: certificate.not_after,
                })
                .collect(),
            now: self.clock.now(),
            overlap: self.overlap(),
            wanted,
            state,
        })
    }

    /// While two CAs are trusted, an agent can follow only to a certificate of a CA that it has told us it trusts.
    fn can_follow(&self, announced: Option<&Certificate>) -> impl Fn(&AgentRecord) -> bool {
        let cas = open::load_cas(self.config).unwrap_or_default();
        let now = self.clock.now();
        let issuer = announced
            .filter(|_| cas.len() > 1)
            .and_then(|c| cas.iter().find(|ca| c.verify_issued_by(ca, now).is_ok()))
            .map(Certificate::fingerprint);
        move |record| {
            issuer.as_ref().is_none_or(|ca| {
                record.trusted_cas.contains(ca) || record.cert_ca.as_ref() == Some(ca)
            })
        }
    }

    fn begin(&self, view: &View) -> Result<Serial, RotationError> {
        // While it is not known who is revoked nobody is called, so nothing is begun that only calls can end.
        Revocations::load(&self.config.revoked_file).map_err(ClientError::from)?;
        let dir = match &self.issuer {
            Issuer::Present => &self.config.ca_dir,
            Issuer::At(dir) => dir,
        };
        let authority = Authority::load(dir, self.clock.clone())?;
        let store = PairStore::of(self.config);
        let present = Identity::load(&self.config.cert, &self.config.key)?;
        store.save(&present)?;

        let key = PrivateKey::generate(KeyType::EcdsaP256)?;
        let certificate = authority.issue_dispatcher(
            key.public(),
            &self.config.dispatcher_id,
            self.config.cert_days,
        )?;
        let serial = certificate.serial.clone();
        let identity = Identity::new(vec![certificate], key)
            .ok_or_else(|| RotationError::PairLost(serial.clone()))?;
        store.save(&identity)?;

        let mut state = view.state.clone();
        if !names_serial(&state.current_serial, &present.certificate().serial) {
            state.current_serial = state::text(&present.certificate().serial);
        }
        state.next_serial = Some(serial.to_string());
        state.next_since = Some(self.clock.iso_now());
        self.save(&state)?;
        Ok(serial)
    }

    /// Calls the agents, each at its own address.
    async fn call<F, W>(
        &self,
        agents: Vec<AgentName>,
        send: W,
    ) -> Result<Vec<(AgentName, Reply)>, RotationError>
    where
        F: Future<Output = Reply> + Send + 'static,
        W: Fn(Target) -> F,
    {
        let registry = self.registry();
        let mut targets = Vec::new();
        for name in agents {
            // Unpaired, or damaged, since the view was made: passed over.
            if let Ok(Some(record)) = registry.get(&name) {
                targets.push(Target::of(record));
            }
        }
        let names: Vec<AgentName> = targets.iter().map(|t| t.name.clone()).collect();
        let replies = fan_out(
            targets,
            self.config.max_parallel,
            |target| {
                let sent = send(target);
                async move { Arc::new(sent.await) }
            },
            |_| Arc::new(Err(fleet::no_worker())),
            |_, _| {},
        )
        .await;
        let replies = replies.into_iter().map(Arc::unwrap_or_clone);
        Ok(names.into_iter().zip(replies).collect())
    }

    async fn announce(
        &self,
        serial: &Serial,
        agents: Vec<AgentName>,
    ) -> Result<Vec<Announced>, RotationError> {
        Action::new("serial-broadcast")
            .field("DISPATCHER", &self.config.dispatcher_id)
            .field("HOSTS", agents.len())
            .field("SERIAL", serial)
            .info();
        let fleet = self.network.open()?;
        let body = json!({ "serial": serial.for_agents(), "action": "add" });
        let replies = self
            .call(agents, |target| {
                fleet.post(target, "/rotate-serial", body.clone())
            })
            .await?;
        let told: Vec<Announced> = replies
            .iter()
            .map(|(agent, reply)| Announced {
                agent: agent.clone(),
                result: fleet::accepted(reply).map(drop),
            })
            .collect();
        let confirmed = told
            .iter()
            .filter(|t| t.result.is_ok())
            .map(|t| t.agent.clone());
        let now = self.clock.iso_now();
        self.registry().update_many(confirmed, |record| {
            record.dispatcher_serial = state::text(serial);
            record.serial_status = SerialStatus::Current;
            record.serial_confirmed.clone_from(&now);
        })?;
        for Announced { agent, result } in &told {
            match result {
                Ok(()) => Action::new("serial-confirmed").field("AGENT", agent).info(),
                Err(error) => Action::new("serial-broadcast-fail")
                    .field("AGENT", agent)
                    .field("ERROR", error)
                    .warning(),
            }
        }
        Ok(told)
    }

    /// Puts a kept pair at the configured paths: key, then certificate.
    fn place(&self, serial: &Serial) -> Result<(), RotationError> {
        let identity = PairStore::of(self.config)
            .load(serial)?
            .ok_or_else(|| RotationError::PairLost(serial.clone()))?;
        let pem = identity.key().to_pkcs8_pem();
        let owner = keyring::service_owner(self.config);
        let key = durable::prepare(&self.config.key, pem.expose().as_bytes(), 0o600, owner)?;
        let certificate = durable::prepare(
            &self.config.cert,
            identity.certificate().to_pem().as_bytes(),
            0o644,
            Owner::default(),
        )?;
        key.commit()?;
        certificate.commit()?;
        Ok(())
    }

    fn promote(&self, view: &View, serial: &Serial) -> Result<(), RotationError> {
        if view.main.as_ref() != Some(serial) || !view.main_fits {
            self.place(serial)?;
        }
        let mut state = self.state()?;
        let old = state.current_serial.clone();
        let now = self.clock.now();
        let until = clock::iso(now.saturating_add(self.overlap()));
        if !old.is_empty() && !names_serial(&old, serial) {
            // The number itself where we know it: the text of the original can stand for two.
            let known = view.kept.iter().map(|k| &k.serial).chain(&view.main);
            let wire = known
                .filter(|s| *s != serial)
                .find(|s| names_serial(&old, s))
                .map_or_else(|| old.clone(), Serial::two_digit_hex);
            state.retiring.retain(|r| r.serial != wire);
            state.retiring.push(Retiring {
                serial: wire,
                until: until.clone(),
                pending: view.agents.iter().map(|a| a.name.clone()).collect(),
            });
        }
        Action::new("cert-rotated")
            .field("AGENTS", view.agents.len())
            .field("NEW_SERIAL", serial)
            .field("OLD_SERIAL", &old)
            .field("OVERLAP_EXPIRES", &until)
            .info();
        state.previous_serial = Some(old);
        state.previous_retired = None;
        state.current_serial = state::text(serial);
        state.rotated_at = clock::iso(now);
        state.overlap_expires = until;
        state.overlap_days = self.config.rotation.overlap_days.into();
        state.next_serial = None;
        state.next_since = None;
        self.save(&state)
    }

    fn mark_stale(&self, names: &[AgentName]) -> Result<(), RotationError> {
        self.registry()
            .update_many(names.iter().cloned(), |record| {
                // It may have confirmed since the view was made.
                if record.serial_status == SerialStatus::Pending {
                    record.serial_status = SerialStatus::Stale;
                }
            })?;
        for name in names {
            Action::new("serial-stale")
                .field("AGENT", name)
                .field("REASON", "overlap expired without confirmation")
                .warning();
        }
        Ok(())
    }

    async fn withdraw(
        &self,
        view: &View,
        old: &str,
        present: &Serial,
        agents: Vec<AgentName>,
        report: &mut Report,
    ) -> Result<(), RotationError> {
        Action::new("serial-retire")
            .field("HOSTS", agents.len())
            .field("SERIAL", old)
            .info();
        let fleet = self.network.open()?;
        let body = json!({ "serial": old, "action": "remove" });
        let replies = self
            .call(agents, |target| {
                let sent = fleet.post_as(present.clone(), target, "/rotate-serial", body.clone());
                async move { sent.await.unwrap_or_else(|| Err(fleet::no_worker())) }
            })
            .await?;
        let mut done = Vec::new();
        for (agent, reply) in &replies {
            match fleet::accepted(reply) {
                Ok(_) => done.push(agent.clone()),
                Err(error) => {
                    Action::new("serial-retire-error")
                        .field("AGENT", agent)
                        .field("ERROR", &error)
                        .warning();
                    report.withdraw_failed.push((agent.clone(), error));
                }
            }
        }
        if !done.is_empty() {
            let told: HashSet<&AgentName> = done.iter().collect();
            let told: HashSet<&AgentName> = view
                .agents
                .iter()
                .filter(|a| told.contains(&a.name))
                .flat_map(Agent::names)
                .collect();
            let mut state = self.state()?;
            for retiring in state.retiring.iter_mut().filter(|r| r.serial == old) {
                retiring.pending.retain(|name| !told.contains(name));
            }
            self.save(&state)?;
        }
        report.withdrawn.extend(done);
        Ok(())
    }

    fn settle(&self, old: &str) -> Result<(), RotationError> {
        let mut state = self.state()?;
        state.retiring.retain(|r| r.serial != old);
        let is_previous = |text: &String| {
            text == old || Serial::parse_hex(old).is_ok_and(|serial| names_serial(text, &serial))
        };
        if state.previous_serial.as_ref().is_some_and(is_previous) {
            state.previous_serial = None;
            state.previous_retired = Some(self.clock.iso_now());
        }
        self.save(&state)
    }
}
