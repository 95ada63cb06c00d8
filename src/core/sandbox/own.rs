//! The executor's own capabilities (spec/executor.md 14.3, 15.2): what it needs to put any script into its profile, and no more.

use caps::Capability;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::core::config::AgentConfig;
use crate::core::sys::creds;

/// What the executor needs, whatever the profiles say.
const OWN: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_ADMIN,
    // Entering a view that another run has built.
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_ADMIN,
    // Negative `nice`.
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_RESOURCE,
];

/// That, and whatever a profile grants, in the order of their numbers.
pub fn needed(config: &AgentConfig) -> Vec<Capability> {
    let granted = config.profiles.values().flat_map(|p| p.caps.iter());
    let mut all: Vec<Capability> = OWN.iter().chain(granted).copied().collect();
    all.sort_by_key(Capability::index);
    all.dedup();
    all
}

/// Gives up, for this process and what it starts, every capability that no profile could need. To be done before bytes of a request are
/// read: whoever finds a way through them finds less behind it.
///
/// `bounding` is what may be in the bounding set; answers what is left of it.
///
/// # Errors
/// The kernel refused: the process has what it had.
pub fn give_up_the_rest(
    config: &AgentConfig,
    bounding: CapabilitySet,
) -> Result<CapabilitySet, rustix::io::Errno> {
    let kept = needed(config)
        .iter()
        .fold(CapabilitySet::empty(), |set, cap| {
            set | CapabilitySet::from_bits_retain(cap.bitmask())
        });
    let left = creds::bound(kept, bounding)?;
    let had = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: had.effective & kept,
            permitted: had.permitted & kept,
            inheritable: had.inheritable & kept,
        },
    )?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::config::ProfileConfig;
    use crate::core::paths::{Paths, Platform};
    use crate::core::types::ProfileName;

    #[test]
    fn a_profile_adds_what_it_grants_once() {
        let paths = Paths::new("/", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, Path::new("agent.conf"));
        assert_eq!(needed(&config), OWN);
        let clock = ProfileConfig {
            caps: vec![Capability::CAP_SYS_TIME, Capability::CAP_KILL],
            ..ProfileConfig::default()
        };
        config
            .profiles
            .insert(ProfileName::new("clock").unwrap(), clock);
        let all = needed(&config);
        assert_eq!(all.len(), OWN.len() + 1);
        assert!(all.contains(&Capability::CAP_SYS_TIME));
    }
}
