//! The path of a request: percent-decoded, otherwise as it stands. Nothing is normalised; what looks odd is no route.

use std::borrow::Cow;

/// Decodes `%XX`. A path with a wrong escape, or one that is no UTF-8 afterwards, stays as it is: no route has such a name.
pub(super) fn decode(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    match decoded(path.as_bytes()).map(String::from_utf8) {
        Some(Ok(text)) => Cow::Owned(text),
        _ => Cow::Borrowed(path),
    }
}

fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let high = digit(*bytes.next()?)?;
            let low = digit(*bytes.next()?)?;
            out.push(high << 4 | low);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// The values of a member of a query, decoded; `+` is a blank.
pub(super) fn values(query: &str, name: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |raw: &str| decode(&raw.replace('+', " ")).into_owned();
            (text(key) == name).then(|| text(value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(decode("/health"), "/health");
        assert_eq!(decode("/%68ealth"), "/health");
        assert_eq!(decode("/%2568ealth"), "/%68ealth");
        assert_eq!(decode("/%c3%A9"), "/é");
        for odd in ["/%", "/%4", "/%zz", "/%ff", "/%+1"] {
            assert_eq!(decode(odd), odd);
        }
    }

    #[test]
    fn queries_have_values() {
        assert_eq!(values("a=1&b=2&a=%20x+y", "a"), ["1", " x y"]);
        assert_eq!(values("a", "a"), [""]);
        assert!(values("", "a").is_empty());
    }
}
