//! The serial rules of release 0.12.3 to the letter (spec/agent.md 13.1 to 13.3), with all that is wrong with them: the oracle for tests
//! of rotation. Written without our own code, which has other rules.

use std::collections::BTreeMap;

/// The canonicaliser (13.1). Not idempotent: what holds only digits is read as decimal, on every pass.
pub fn canonical(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let text = without_prefix(without_prefix(text, "0x"), "serial=").to_ascii_lowercase();
    if text.contains(':') {
        return minimal(&text.replace(':', ""));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return decimal_to_hex(&text);
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return minimal(&text);
    }
    "nan".to_owned()
}

/// The key of a live certificate: two lower-case digits per byte of the serial, one pass. Empty: no certificate.
pub fn live(serial: &[u8]) -> String {
    canonical(&two_digit_hex(serial))
}

/// What pairing with the original leaves in the agent's file for a certificate of this serial (hex): the dispatcher sends it after one
/// pass, `add` makes a second.
pub fn left_by_pairing(hex: &str) -> String {
    let even = if hex.len() % 2 == 1 {
        format!("0{hex}")
    } else {
        hex.to_owned()
    };
    canonical(&canonical(&even))
}

/// Big-endian bytes as text, without a leading zero byte; `00` for zero.
pub fn two_digit_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let first = bytes.iter().position(|&b| b != 0);
    let value = first.map_or(&bytes[bytes.len().saturating_sub(1)..], |at| &bytes[at..]);
    value.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn without_prefix<'a>(text: &'a str, prefix: &str) -> &'a str {
    match text.get(..prefix.len()) {
        Some(head) if head.eq_ignore_ascii_case(prefix) => &text[prefix.len()..],
        _ => text,
    }
}

/// Without leading zeros, but the last digit stays.
fn minimal(text: &str) -> String {
    let rest = text.trim_start_matches('0');
    if rest.is_empty() && !text.is_empty() {
        "0".to_owned()
    } else {
        rest.to_owned()
    }
}

/// Of any length; `digits` holds nothing else.
fn decimal_to_hex(digits: &str) -> String {
    // Half bytes, the lowest first.
    let mut value = vec![0_u32];
    for digit in digits.bytes() {
        let mut carry = u32::from(digit - b'0');
        for nibble in &mut value {
            let sum = *nibble * 10 + carry;
            (*nibble, carry) = (sum % 16, sum / 16);
        }
        while carry > 0 {
            value.push(carry % 16);
            carry /= 16;
        }
    }
    let text: String = value
        .iter()
        .rev()
        .filter_map(|&nibble| char::from_digit(nibble, 16))
        .collect();
    minimal(&text)
}

/// The file `ctrl-exec-dispatchers` of one agent. There is nothing but its text: the original loads it anew for every change.
#[derive(Clone, Debug, Default)]
pub struct TrustFile(String);

impl TrustFile {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// The rows as they stand there, before any pass.
    pub fn raw(&self) -> BTreeMap<String, String> {
        self.rows()
            .map(|(serial, id)| (serial.to_owned(), id.to_owned()))
            .collect()
    }

    /// What the agent holds after reading the file: each serial passed once more; later lines win.
    pub fn load(&self) -> BTreeMap<String, String> {
        self.rows()
            .map(|(serial, id)| (canonical(serial), id.to_owned()))
            .collect()
    }

    /// The dispatcher id of a live key, by equality of texts.
    pub fn find(&self, key: &str) -> Option<String> {
        self.load().remove(key)
    }

    /// Load, insert, rewrite. Nothing is asked about the serial but that something is left of it: not its length, not its digits, not
    /// whose it was. Every other row passes the canonicaliser and is written back like that.
    ///
    /// # Errors
    /// The text of the original.
    pub fn add(&mut self, serial: &str, id: &str) -> Result<(), String> {
        let key = canonical(serial);
        if key.is_empty() {
            return Err("invalid dispatcher serial".to_owned());
        }
        if !is_id(id) {
            return Err(format!("invalid dispatcher id '{id}'"));
        }
        let mut rows = self.load();
        rows.insert(key, id.to_owned());
        self.write(&rows);
        Ok(())
    }

    /// Takes a row away that belongs to `caller`; one that is not there is no error and changes nothing.
    ///
    /// # Errors
    /// The row belongs to somebody else.
    pub fn remove(&mut self, serial: &str, caller: &str) -> Result<(), String> {
        let key = canonical(serial);
        let mut rows = self.load();
        match rows.get(&key) {
            None => return Ok(()),
            Some(owner) if owner != caller => {
                return Err(format!("serial not owned by '{caller}'"));
            }
            Some(_) => rows.remove(&key),
        };
        self.write(&rows);
        Ok(())
    }

    fn write(&mut self, rows: &BTreeMap<String, String>) {
        let rows: Vec<(&str, &str)> = rows.iter().map(|(s, i)| (s.as_str(), i.as_str())).collect();
        self.0 = crate::common::fleet::legacy_map(&rows);
    }

    fn rows(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.lines().filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (serial, id) = line.split_once(char::is_whitespace)?;
            let id = id.trim();
            is_id(id).then_some((serial, id))
        })
    }
}

fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    (1..=64).contains(&text.len())
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|b| plain(b) || b"._-".contains(&b))
}
