//! Bodies, which are skipped (RFC 9112, sections 6 and 7).

use super::half::{Half, Step};
use super::{Failure, Framing};

/// Digits of a chunk's size at most.
const CHUNK_DIGITS_MAX: u8 = 16;

impl Half {
    /// After the head: what follows it.
    pub fn enter_body(&mut self, framing: Framing) {
        self.step = match framing {
            Framing::Empty => Step::Start,
            Framing::Length(n) => {
                self.left = n;
                Step::Bytes
            }
            Framing::Chunked => self.chunk_size(),
            Framing::UntilClose => Step::UntilClose,
            Framing::Ambiguous => return self.fail(Failure::Ambiguous),
        };
    }

    fn chunk_size(&mut self) -> Step {
        (self.left, self.matched) = (0, 0);
        Step::ChunkSize
    }

    /// The next of a body's bytes.
    pub(super) fn body(&mut self, input: &mut &[u8]) -> Result<(), Failure> {
        match self.step {
            Step::Bytes | Step::ChunkBytes => {
                let n = self.left.min(input.len() as u64);
                *input = &input[n as usize..];
                self.left -= n;
                self.content += n;
                if self.left == 0 {
                    let last = self.step == Step::Bytes;
                    self.step = if last { Step::Start } else { Step::ChunkReturn };
                }
                return Ok(());
            }
            Step::UntilClose => {
                self.content += input.len() as u64;
                *input = &[];
                return Ok(());
            }
            Step::ChunkExtension => {
                // Only CR LF ends it: others take a bare LF for its end, or do not.
                let end = memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len());
                match input.get(end) {
                    Some(b'\r') => self.step = Step::ChunkSizeLineFeed,
                    Some(_) => return Err(Failure::Ambiguous),
                    None => {
                        *input = &[];
                        return Ok(());
                    }
                }
                *input = &input[end..];
            }
            Step::ChunkSize => self.chunk_digit(input[0])?,
            Step::ChunkSizeLineFeed if input[0] == b'\n' => {
                self.step = if self.left > 0 {
                    Step::ChunkBytes
                } else {
                    (self.in_trailers, self.head_bytes) = (true, 0);
                    Step::LineStart
                };
            }
            Step::ChunkReturn if input[0] == b'\r' => self.step = Step::ChunkLineFeed,
            Step::ChunkLineFeed if input[0] == b'\n' => self.step = self.chunk_size(),
            _ => return Err(Failure::Ambiguous),
        }
        *input = &input[1..];
        Ok(())
    }

    fn chunk_digit(&mut self, byte: u8) -> Result<(), Failure> {
        match (byte as char).to_digit(16) {
            Some(digit) if self.matched < CHUNK_DIGITS_MAX => {
                self.left = self.left << 4 | u64::from(digit);
                self.matched += 1;
            }
            None if self.matched > 0 => match byte {
                b'\r' => self.step = Step::ChunkSizeLineFeed,
                b';' | b' ' | b'\t' => self.step = Step::ChunkExtension,
                _ => return Err(Failure::Ambiguous),
            },
            _ => return Err(Failure::Ambiguous),
        }
        Ok(())
    }
}
