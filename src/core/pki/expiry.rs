//! The text form of an expiry date: what OpenSSL prints, what others parse (spec/dispatcher.md 14.6, 21.7).

use crate::core::clock;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// `Jun  7 16:28:00 2028 GMT`: two spaces before a one-digit day.
pub fn openssl_text(unix: i64) -> String {
    let t = clock::calendar(unix);
    format!(
        "{} {:2} {:02}:{:02}:{:02} {} GMT",
        MONTHS[usize::from(u8::from(t.month()) - 1)],
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.year()
    )
}

/// Seconds since 1970 of such a text; any number of blanks between the words. Anything else is `None` (unknown).
pub fn parse_openssl_text(text: &str) -> Option<i64> {
    let mut words = text.split_ascii_whitespace();
    let month = words.next()?;
    let month = MONTHS.iter().position(|m| *m == month)?;
    let day = digits(words.next()?, 1, 2)?;
    let mut time = words.next()?.split(':');
    let hour = digits(time.next()?, 2, 2)?;
    let minute = digits(time.next()?, 2, 2)?;
    let second = digits(time.next()?, 2, 2)?;
    let year = digits(words.next()?, 4, 4)?;
    if words.next()? != "GMT" || words.next().is_some() || time.next().is_some() {
        return None;
    }
    let small = |n: u16| u8::try_from(n).ok();
    clock::unix_of(
        i32::from(year),
        u8::try_from(month + 1).ok()?,
        small(day)?,
        (small(hour)?, small(minute)?, small(second)?),
    )
}

fn digits(text: &str, min: usize, max: usize) -> Option<u16> {
    let fits = (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| text.parse().ok())?
}

/// Whole days until the expiry, truncated toward zero, negative once it has passed; `None` if the text cannot be read.
pub fn days_left(text: &str, now: i64) -> Option<i64> {
    Some((parse_openssl_text(text)? - now) / 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_that_of_openssl() {
        assert_eq!(openssl_text(1_844_008_080), "Jun  7 16:28:00 2028 GMT");
        assert_eq!(openssl_text(951_827_696), "Feb 29 12:34:56 2000 GMT");
        assert_eq!(
            parse_openssl_text("Jun  7 16:28:00 2028 GMT"),
            Some(1_844_008_080)
        );
        assert_eq!(
            parse_openssl_text("Jun 7 16:28:00 2028 GMT"),
            Some(1_844_008_080)
        );
    }

    #[test]
    fn what_is_not_a_date_is_unknown() {
        for bad in [
            "",
            "unknown",
            "Jun 7 16:28:00 2028",
            "Jun 7 16:28:00 2028 UTC",
            "jun 7 16:28:00 2028 GMT",
            "Feb 30 00:00:00 2028 GMT",
            "Jun 7 16:28 2028 GMT",
            "Jun 7 16:28:00:00 2028 GMT",
            "Jun 7 16:28:00 2028 GMT x",
            "Jun +7 16:28:00 2028 GMT",
            "2028-06-07",
        ] {
            assert_eq!(parse_openssl_text(bad), None, "{bad:?}");
            assert_eq!(days_left(bad, 0), None);
        }
    }

    #[test]
    fn days_are_whole_and_truncated_toward_zero() {
        let text = openssl_text(1_844_008_080);
        for (offset, expected) in [(0, 0), (86_399, 0), (86_400, 1), (-1, 0), (-86_400, -1)] {
            assert_eq!(days_left(&text, 1_844_008_080 - offset), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(unix in 0_i64..253_402_300_799) {
            prop_assert_eq!(parse_openssl_text(&openssl_text(unix)), Some(unix));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}", now in -1_i64 << 40..1_i64 << 40) {
            let _ = days_left(&text, now);
        }
    }
}
