//! The grammar below the meaning: words, fields, tags.

use super::FrameError::{self, Malformed};

/// Begins a trailer.
pub(in crate::core::exec) const MAGIC: &[u8; 4] = b"CEX1";
/// Most tags of a trailer.
pub(in crate::core::exec) const MAX_TAGS: usize = 64;
/// Longest value of a tag.
pub(in crate::core::exec) const MAX_VALUE: usize = 4096;
/// Of the flags of a tag: whoever does not know it must refuse.
const CRITICAL: u16 = 1;

/// Takes bytes from the front. Nothing is allocated by what a length announces.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(Malformed("it breaks off"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Malformed("it breaks off"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn word(&mut self) -> Result<[u8; 4], FrameError> {
        self.array()
    }

    pub(super) fn length(&mut self) -> Result<usize, FrameError> {
        let length = u32::from_be_bytes(self.word()?);
        usize::try_from(length).map_err(|_| Malformed("a length beyond this machine"))
    }

    pub(super) fn field(&mut self) -> Result<&'a [u8], FrameError> {
        let length = self.length()?;
        self.take(length)
    }
}

#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub(super) tag: u16,
    pub(super) critical: bool,
    pub(super) value: &'a [u8],
}

/// A whole trailer: magic, count, tags, and nothing behind them. Every tag stands once.
pub(super) fn read_tags(trailer: &[u8]) -> Result<Vec<Tag<'_>>, FrameError> {
    let mut reader = Reader::new(trailer);
    if &reader.word()? != MAGIC {
        return Err(Malformed("bytes behind the end"));
    }
    let count = reader.length()?;
    if count > MAX_TAGS {
        return Err(Malformed("too many tags"));
    }
    let mut tags: Vec<Tag<'_>> = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = u16::from_be_bytes(reader.array()?);
        let flags = u16::from_be_bytes(reader.array()?);
        let value = reader.field()?;
        if value.len() > MAX_VALUE {
            return Err(Malformed("a tag beyond the limit"));
        }
        if tags.iter().any(|t| t.tag == tag) {
            return Err(Malformed("a tag that stands twice"));
        }
        tags.push(Tag {
            tag,
            critical: flags & CRITICAL != 0,
            value,
        });
    }
    if reader.rest().is_empty() {
        Ok(tags)
    } else {
        Err(Malformed("bytes behind the end"))
    }
}

/// Writes nothing when there are no tags.
pub(super) fn write_tags(frame: &mut Vec<u8>, tags: &[(u16, bool, Vec<u8>)]) {
    if tags.is_empty() {
        return;
    }
    frame.extend_from_slice(MAGIC);
    put_length(frame, tags.len());
    for (tag, critical, value) in tags {
        let flags = if *critical { CRITICAL } else { 0 };
        frame.extend_from_slice(&tag.to_be_bytes());
        frame.extend_from_slice(&flags.to_be_bytes());
        put_field(frame, value);
    }
}

/// A field of more than 4 GiB, which no caller makes, is cut.
pub(super) fn put_field(frame: &mut Vec<u8>, field: &[u8]) {
    let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
    let field = field.get(..most).unwrap_or(field);
    put_length(frame, field.len());
    frame.extend_from_slice(field);
}

pub(super) fn put_length(frame: &mut Vec<u8>, n: usize) {
    let n = u32::try_from(n).unwrap_or(u32::MAX);
    frame.extend_from_slice(&n.to_be_bytes());
}
