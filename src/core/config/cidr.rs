//! Address ranges of `allowed_ips` (spec/agent.md 3.3; IPv6 and any prefix length are ours).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::Reader;
use super::{Cidr, RateSpec};

/// The texts of the original's `config-warn` lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CidrError {
    #[error("unsupported prefix length")]
    Prefix,
    #[error("malformed IPv4 address")]
    V4,
    #[error("malformed IPv6 address")]
    V6,
}

impl Cidr {
    /// Reads `a.b.c.d`, `a.b.c.d/n`, or the IPv6 forms. Octets may have leading zeros, as in the original. The host part is dropped.
    ///
    /// # Errors
    /// The prefix length (looked at first) or the address is not valid.
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let six = address.contains(':');
        let longest: u8 = if six { 128 } else { 32 };
        let prefix = match prefix {
            None => longest,
            Some(digits) => {
                let plain =
                    (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                let number: u8 = digits.parse().map_err(|_| CidrError::Prefix)?;
                if !plain || number > longest {
                    return Err(CidrError::Prefix);
                }
                number
            }
        };
        if !six {
            let address = parse_v4(address).ok_or(CidrError::V4)?;
            return Ok(Self::masked(IpAddr::V4(address), prefix));
        }
        let address: Ipv6Addr = address.parse().map_err(|_| CidrError::V6)?;
        match address.to_ipv4_mapped() {
            // A peer with a mapped address is looked up as IPv4, so a mapped range means the IPv4 range.
            Some(four) if prefix >= 96 => Ok(Self::masked(IpAddr::V4(four), prefix - 96)),
            _ => Ok(Self::masked(IpAddr::V6(address), prefix)),
        }
    }

    fn masked(address: IpAddr, prefix: u8) -> Self {
        let network = match address {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask_v4(prefix))),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask_v6(prefix))),
        };
        Self { network, prefix }
    }

    /// Whether the address lies in the range. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(n), IpAddr::V4(a)) => n.to_bits() == a.to_bits() & mask_v4(self.prefix),
            (IpAddr::V6(n), IpAddr::V6(a)) => n.to_bits() == a.to_bits() & mask_v6(self.prefix),
            _ => false,
        }
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let plain = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        *octet = plain.then(|| part.parse().ok()).flatten()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = if self.network.is_ipv4() { 32 } else { 128 };
        if self.prefix == longest {
            write!(f, "{}", self.network)
        } else {
            write!(f, "{}/{}", self.network, self.prefix)
        }
    }
}

impl fmt::Display for RateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.limit,
            self.window.as_secs(),
            self.block.as_secs()
        )
    }
}

/// Bad entries are dropped with a warning; a list of nothing but bad entries must not let everybody in (spec/agent.md 3.3, 19.2).
pub(super) fn allowed_ips(r: &mut Reader<'_>) -> Option<Vec<Cidr>> {
    r.list("allowed_ips", |c| c == ',', |r, items| {
        let mut good = Vec::new();
        for item in &items.value {
            match Cidr::parse(&item.value) {
                Ok(cidr) => good.push(cidr),
                Err(why) => r.warn(
                    &item.span,
                    &format!("allowed_ips: entry '{}' is dropped: {why}", item.value),
                ),
            }
        }
        if good.is_empty() {
            let message = format!(
                "allowed_ips holds no usable address {}: correct it, or remove the key to accept all sources",
                r.in_file()
            );
            r.error(&items.span, &message);
        }
        Some(good)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_in_the_original_and_beyond() {
        for (text, canonical) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.00.0.0/16", "10.0.0.0/16"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3/7", "10.0.0.0/7"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1/8", "fd00::/8"),
            ("::1", "::1"),
            ("::ffff:10.9.8.7/104", "10.0.0.0/8"),
        ] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), canonical);
        }
        for (text, error) in [
            ("1.2.3", CidrError::V4),
            ("256.1.1.1", CidrError::V4),
            ("1.2.3.4.5", CidrError::V4),
            ("0001.2.3.4", CidrError::V4),
            ("host", CidrError::V4),
            ("1.2.3/33", CidrError::Prefix),
            ("10.0.0.0/", CidrError::Prefix),
            ("10.0.0.0/+8", CidrError::Prefix),
            ("::1/129", CidrError::Prefix),
            ("fd00::g", CidrError::V6),
        ] {
            assert_eq!(Cidr::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn families_do_not_mix_but_mapped_addresses_are_ipv4() {
        let ten = Cidr::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(ten.contains("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        assert!(!ten.contains("a00::1".parse().unwrap()));
        let all6 = Cidr::parse("::/0").unwrap();
        assert!(all6.contains("fd00::1".parse().unwrap()));
        assert!(!all6.contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn allowed_ips_never_end_up_empty() {
        let loaded =
            agent_lines("allowed_ips = 10.00.0.0/16, 1.2.3 ,10.0.0.0/40, fd00::/8,\n").unwrap();
        let shown: Vec<String> = loaded
            .value
            .allowed_ips
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["10.0.0.0/16", "fd00::/8"]);
        let said = warnings(&loaded);
        assert!(
            said[0].contains(
                "6:29: warning: allowed_ips: entry '1.2.3' is dropped: malformed IPv4 address"
            ),
            "{said:?}"
        );
        assert!(said[1].contains("entry '10.0.0.0/40' is dropped: unsupported prefix length"));
        for bad in ["allowed_ips = nonsense, 1.2.3", "allowed_ips = ,"] {
            assert!(error(agent_lines(bad)).contains("allowed_ips holds no usable address"));
        }
        assert!(error(agent_toml("allowed_ips = []")).contains("no usable address"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}|[0-9a-f:./]{0,40}") {
            if let Ok(cidr) = Cidr::parse(&text) {
                prop_assert_eq!(Cidr::parse(&cidr.to_string()), Ok(cidr));
            }
        }
    }
}
