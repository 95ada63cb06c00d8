//! Messages on the pairing connection: a head, an empty line, and as many bytes as `Content-Length` says (spec/pairing.md 3).
//!
//! One connection carries several messages in each direction and they may arrive in any pieces, so this is a parser that is fed.

use super::{MAX_BODY, MAX_HEAD};

/// Whose messages are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// What an agent sends: lines end in CR LF; no length means no body (spec/pairing.md 3.1).
    Requests,
    /// What a dispatcher sends: lines end in CR LF or LF; a length is required (spec/pairing.md 3.3).
    Responses,
}

/// One whole message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// The request or status line. The original looks at neither.
    pub start_line: String,
    pub body: Vec<u8>,
}

impl Message {
    /// The path of a request line, empty when there is none.
    pub fn path(&self) -> &str {
        self.start_line.split(' ').nth(1).unwrap_or_default()
    }
}

/// Why bytes are not a message. Nothing more can be read from the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error("the header is longer than 8192 bytes")]
    HeadTooLarge,
    #[error("the body is longer than 65536 bytes")]
    BodyTooLarge,
    #[error("there is no Content-Length")]
    NoLength,
    #[error("the Content-Length is not a number, or there are two that differ")]
    BadLength,
    #[error("the body comes in a transfer coding, which pairing does not use")]
    TransferCoding,
    #[error("more arrived than the protocol allows at this point")]
    TooMuch,
}

/// Most that is ever held: one message and the chunk in which its end arrived.
const MAX_HELD: usize = 2 * (MAX_HEAD + MAX_BODY);

/// Collects bytes and gives out messages.
#[derive(Debug)]
pub struct Framing {
    direction: Direction,
    held: Vec<u8>,
}

impl Framing {
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            held: Vec::new(),
        }
    }

    /// Whether bytes of an unfinished message are held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes what was read from the connection.
    ///
    /// # Errors
    /// [`FrameError::TooMuch`] when messages pile up that nobody asked for.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        if self.held.len() + bytes.len() > MAX_HELD {
            return Err(FrameError::TooMuch);
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// The next message, when all of it has arrived.
    ///
    /// # Errors
    /// The bytes are no message within the limits. The limits hold before the message is complete.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        let Some((head_len, blank_len)) = self.head_end() else {
            return if self.held.len() > MAX_HEAD {
                Err(FrameError::HeadTooLarge)
            } else {
                Ok(None)
            };
        };
        if head_len > MAX_HEAD {
            return Err(FrameError::HeadTooLarge);
        }
        let head = String::from_utf8_lossy(&self.held[..head_len]).into_owned();
        let mut lines = head.split('\n').map(|l| l.trim_end_matches('\r'));
        let start_line = lines.next().unwrap_or_default().to_owned();
        let length = match (content_length(lines)?, self.direction) {
            (Some(length), _) => length,
            (None, Direction::Requests) => 0,
            (None, Direction::Responses) => return Err(FrameError::NoLength),
        };
        let body_start = head_len + blank_len;
        if self.held.len() < body_start + length {
            return Ok(None);
        }
        let body = self.held[body_start..body_start + length].to_vec();
        self.held.drain(..body_start + length);
        Ok(Some(Message { start_line, body }))
    }

    /// Length of the head without the empty line, and of what ends it.
    fn head_end(&self) -> Option<(usize, usize)> {
        // Looking no further than a head may reach keeps a slow drip of a long body cheap.
        let held = &self.held[..self.held.len().min(MAX_HEAD + 4)];
        let find = |pattern: &[u8]| held.windows(pattern.len()).position(|w| w == pattern);
        let strict = find(b"\r\n\r\n").map(|at| (at, 4));
        match self.direction {
            Direction::Requests => strict,
            // "\n\r\n" also matches inside "\r\n\r\n", one byte later; the trailing CR is trimmed with the line.
            Direction::Responses => [
                strict,
                find(b"\n\n").map(|at| (at, 2)),
                find(b"\n\r\n").map(|at| (at, 3)),
            ]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at),
        }
    }
}

fn content_length<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Option<usize>, FrameError> {
    let mut found = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(FrameError::TransferCoding);
        }
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let value = value.trim();
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
            return Err(FrameError::BadLength);
        }
        // A number too long for usize is too large, not malformed.
        let length = value.parse().unwrap_or(usize::MAX);
        if found.is_some_and(|earlier| earlier != length) {
            return Err(FrameError::BadLength);
        }
        found = Some(length);
    }
    match found {
        Some(length) if length > MAX_BODY => Err(FrameError::BodyTooLarge),
        other => Ok(other),
    }
}

/// A request of the agent. HTTP/1.0 with exactly these headers, as the original sends it.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    with_head(&format!("POST {path} HTTP/1.0"), body)
}

/// A response of the dispatcher: always status 200, also for refusals (spec/pairing.md 3.2).
pub fn response(body: &[u8]) -> Vec<u8> {
    with_head("HTTP/1.0 200 OK", body)
}

fn with_head(start_line: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{start_line}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(direction: Direction, bytes: &[u8]) -> Result<Option<Message>, FrameError> {
        let mut framing = Framing::new(direction);
        framing.feed(bytes)?;
        framing.next_message()
    }

    #[test]
    fn a_message_is_written_exactly_as_the_original_does() {
        assert_eq!(
            response(b"{}"),
            b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert!(request("/pair", b"{}").starts_with(b"POST /pair HTTP/1.0\r\nContent-Type: "));
    }

    #[test]
    fn two_messages_in_one_record_come_out_one_by_one() {
        let mut framing = Framing::new(Direction::Responses);
        framing
            .feed(&[response(b"{\"a\":1}"), response(b"{\"b\":2}")].concat())
            .unwrap();
        assert_eq!(framing.next_message().unwrap().unwrap().body, b"{\"a\":1}");
        assert_eq!(framing.next_message().unwrap().unwrap().body, b"{\"b\":2}");
        assert_eq!(framing.next_message(), Ok(None));
        assert!(framing.is_empty());
    }

    #[test]
    fn responses_may_have_bare_line_feeds_lower_case_and_further_headers() {
        let message = read(
            Direction::Responses,
            b"anything at all\nserver: x\ncontent-length:2\nfoo\n\n{}",
        );
        assert_eq!(message.unwrap().unwrap().body, b"{}");
        let message = read(
            Direction::Responses,
            b"HTTP/1.0 200 OK\nCONTENT-LENGTH: 2\n\r\n{}",
        );
        assert_eq!(message.unwrap().unwrap().body, b"{}");
    }

    #[test]
    fn a_request_needs_cr_lf_and_may_use_any_request_line() {
        assert_eq!(
            read(Direction::Requests, b"POST /pair\nContent-Length: 2\n\n{}"),
            Ok(None)
        );
        let message = read(
            Direction::Requests,
            b"BREW tea\r\ncontent-LENGTH : 2\r\n\r\n{}",
        );
        let message = message.unwrap().unwrap();
        assert_eq!((message.path(), &message.body[..]), ("tea", &b"{}"[..]));
    }

    #[test]
    fn no_length_is_an_empty_request_and_no_response() {
        let message = read(Direction::Requests, b"POST /pair HTTP/1.0\r\n\r\n");
        assert_eq!(message.unwrap().unwrap().body, b"");
        let message = read(Direction::Responses, b"HTTP/1.0 200 OK\r\n\r\n");
        assert_eq!(message, Err(FrameError::NoLength));
        // The empty line before the status line is fatal in the original, too.
        let message = read(Direction::Responses, b"\r\n\r\nHTTP/1.0 200 OK\r\n");
        assert_eq!(message, Err(FrameError::NoLength));
    }

    #[test]
    fn limits_hold_before_the_message_is_complete() {
        let head = |n: usize| format!("POST /pair HTTP/1.0\r\nContent-Length: {n}\r\n\r\n");
        assert_eq!(read(Direction::Requests, head(65_536).as_bytes()), Ok(None));
        for n in [65_537, usize::MAX] {
            assert_eq!(
                read(Direction::Requests, head(n).as_bytes()),
                Err(FrameError::BodyTooLarge)
            );
        }
        let endless = format!("POST /pair HTTP/1.0\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(
            read(Direction::Requests, endless.as_bytes()),
            Err(FrameError::HeadTooLarge)
        );
        let mut framing = Framing::new(Direction::Requests);
        framing.feed(&vec![b'x'; MAX_HELD]).unwrap();
        assert_eq!(framing.feed(b"x"), Err(FrameError::TooMuch));
    }

    #[test]
    fn lengths_that_could_be_read_in_two_ways_are_refused() {
        for (lines, error) in [
            (
                "Content-Length: 2\r\nContent-Length: 3",
                FrameError::BadLength,
            ),
            ("Content-Length: -1", FrameError::BadLength),
            ("Content-Length: 0x2", FrameError::BadLength),
            ("Content-Length:", FrameError::BadLength),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 2",
                FrameError::TransferCoding,
            ),
            (
                "Content-Length: 99999999999999999999999",
                FrameError::BodyTooLarge,
            ),
        ] {
            let bytes = format!("POST /pair HTTP/1.1\r\n{lines}\r\n\r\n{{}}");
            assert_eq!(
                read(Direction::Requests, bytes.as_bytes()),
                Err(error),
                "{lines}"
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4),
            cuts in proptest::collection::vec(1_usize..40, 1..60),
        ) {
            for (direction, write) in [
                (Direction::Requests, (|b: &[u8]| request("/pair", b)) as fn(&[u8]) -> Vec<u8>),
                (Direction::Responses, response as fn(&[u8]) -> Vec<u8>),
            ] {
                let wire: Vec<u8> = bodies.iter().flat_map(|b| write(b)).collect();
                let mut framing = Framing::new(direction);
                let (mut rest, mut seen) = (&wire[..], Vec::new());
                for cut in cuts.iter().cycle() {
                    let (piece, left) = rest.split_at((*cut).min(rest.len()));
                    framing.feed(piece).unwrap();
                    while let Some(message) = framing.next_message().unwrap() {
                        seen.push(message.body);
                    }
                    rest = left;
                    if rest.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!(&seen, &bodies);
            }
        }

        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            for direction in [Direction::Requests, Direction::Responses] {
                let mut framing = Framing::new(direction);
                for byte in &bytes {
                    framing.feed(&[*byte]).unwrap();
                    if framing.next_message().is_err() {
                        break;
                    }
                }
            }
        }
    }
}
