//! Paths of requests: exact ones, prefixes, and patterns with segments of any value.
//!
//! Patterns fall into shapes: so many segments, these of them of any value, more to follow or not.
//! A look-up takes one hash look-up for each shape, of which there are few, and one for all exact
//! paths, however many patterns there are (tuple space search: Srinivasan, Suri, Varghese: "Packet
//! Classification using Tuple Space Search", SIGCOMM 1999).

use super::normal::is_encoded;
use super::texts::TextTable;
use super::values::{NONE, SEED};
use crate::base::hash::{fold, hash_bytes};

/// Segments of a pattern at most.
pub const SEGMENTS_MAX: usize = 16;
/// Shapes of one configuration's patterns at most, exact paths not counted.
pub const SHAPES_MAX: usize = 31;
/// Values that a path hits at most: one of each shape, and one as a whole.
pub const HITS_MAX: usize = SHAPES_MAX + 1;

/// A path to match, segment by segment, without regard to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    /// More segments follow, at least one.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(String),
    /// Of any value, but not empty.
    Any,
    /// The same up to its last colon; holds what follows, colon included.
    Ends(String),
}

/// What patterns are told apart by before their text is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    segments: u8,
    /// Bits of the segments that are of any value.
    any: u16,
    /// Bits of those of which only the end counts.
    ends: u16,
    open: bool,
}

impl PathPattern {
    /// `/v1/chat/completions`, `/v1/models/{model}`, `/v1beta/models/{model}:generateContent`,
    /// `/v1/*`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<PathPattern, &'static str> {
        let rest = text.strip_prefix('/').ok_or("does not begin with `/`")?;
        if rest.contains(['?', '#', ' ']) {
            return Err("has a character that no path has: a query is not part of it");
        }
        if !is_encoded(rest) {
            return Err("has a `%` without two hexadecimal digits (RFC 3986, section 2.1)");
        }
        let (rest, open) = match rest.strip_suffix('*') {
            Some("") => (None, true),
            Some(rest) => (Some(rest.strip_suffix('/').ok_or(WILD)?), true),
            None => (Some(rest), false),
        };
        let segments = rest.map(|rest| rest.split('/').map(segment).collect());
        let segments: Vec<_> = segments.transpose()?.unwrap_or_default();
        if segments.len() > SEGMENTS_MAX {
            return Err("has more than 16 segments");
        }
        Ok(PathPattern { segments, open })
    }

    fn shape(&self) -> Shape {
        let bits = |which: fn(&Segment) -> bool| {
            let those = self.segments.iter().enumerate().filter(|(_, segment)| which(segment));
            those.fold(0, |bits, (i, _)| bits | 1 << i)
        };
        Shape {
            segments: self.segments.len() as u8,
            any: bits(|segment| *segment == Segment::Any),
            ends: bits(|segment| matches!(segment, Segment::Ends(_))),
            open: self.open,
        }
    }

    fn is_exact(&self) -> bool {
        !self.open && self.segments.iter().all(|segment| matches!(segment, Segment::Exact(_)))
    }

    /// Its segments that are not of any value, or their ends, each behind a slash.
    fn text(&self) -> Box<[u8]> {
        let texts = self.segments.iter().filter_map(|segment| match segment {
            Segment::Exact(text) | Segment::Ends(text) => Some(text),
            Segment::Any => None,
        });
        let parts = texts.flat_map(|s| [b"/", s.as_bytes()]);
        parts.collect::<Vec<_>>().concat().into_boxed_slice()
    }
}

const WILD: &str = "has a `*` that is not its last segment: write `{name}` for a segment within";

fn segment(text: &str) -> Result<Segment, &'static str> {
    let plain = |text: &str| !text.contains(['{', '}', '*']);
    match text.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((name, "")) if plain(name) => Ok(Segment::Any),
        Some((name, end))
            if plain(name) && plain(end) && end.len() > 1 && end.rfind(':') == Some(0) =>
        {
            Ok(Segment::Ends(end.to_owned()))
        }
        None if text.contains('*') => Err(WILD),
        None if plain(text) => Ok(Segment::Exact(text.to_owned())),
        _ => {
            Err("has a `{` or `}` that encloses neither a whole segment nor one up to its last `:`")
        }
    }
}

/// The shapes of patterns that are not exact paths, each once.
pub fn shapes<'a>(patterns: impl IntoIterator<Item = &'a PathPattern>) -> Vec<Shape> {
    let wild = patterns.into_iter().filter(|p| !p.is_exact());
    let mut shapes: Vec<Shape> = wild.map(PathPattern::shape).collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

/// Values by pattern.
pub struct PathTable {
    exact: TextTable,
    shapes: Vec<Shape>,
    /// By the shape's number and the text of the segments that count.
    patterns: TextTable,
}

impl PathTable {
    /// Room for these patterns.
    ///
    /// # Panics
    /// On more than [`SHAPES_MAX`] shapes: the configuration is checked for it.
    pub fn with_room_for<'a>(patterns: impl Iterator<Item = &'a PathPattern> + Clone) -> PathTable {
        let shapes = shapes(patterns.clone());
        assert!(shapes.len() <= SHAPES_MAX, "{} shapes", shapes.len());
        let exact = patterns.clone().filter(|p| p.is_exact()).count();
        let all = patterns.count();
        PathTable {
            exact: TextTable::with_capacity(exact),
            shapes,
            patterns: TextTable::with_capacity(all - exact),
        }
    }

    pub fn find_or_insert(&mut self, pattern: &PathPattern, fresh: u32) -> u32 {
        let text = pattern.text();
        if pattern.is_exact() {
            return self.exact.find_or_insert(hash_bytes(SEED, &text), 0, &text, fresh);
        }
        let shape = self.shapes.binary_search(&pattern.shape()).unwrap_or_default();
        let parts = Parts::of(&text);
        let hash = parts.iter().fold(start(shape), |hash, part| step(hash, part.hash));
        self.patterns.find_or_insert(hash, shape as u8, &text, fresh)
    }

    /// The values of all patterns that match, and how many there are. `path` has no query.
    pub fn find(&self, path: &[u8], hits: &mut [u32; HITS_MAX]) -> usize {
        let mut count = 0;
        let mut hit = |value: u32| {
            hits[count] = value;
            count += usize::from(value != NONE);
        };
        if !self.exact.is_empty() {
            hit(self.exact.find(hash_bytes(SEED, path), 0, |exact| exact == path));
        }
        if !self.shapes.is_empty() && path.first() == Some(&b'/') {
            let parts = Parts::of(path);
            for (number, shape) in self.shapes.iter().enumerate() {
                hit(self.find_shape(number, shape, &parts));
            }
        }
        count
    }

    fn find_shape(&self, number: usize, shape: &Shape, parts: &Parts<'_>) -> u32 {
        let segments = usize::from(shape.segments);
        if segments > parts.count || shape.open != (parts.count > segments) {
            return NONE;
        }
        let kept = || {
            let parts = parts.iter().take(segments).enumerate();
            parts.filter(|(i, _)| shape.any >> i & 1 == 0).map(|(i, part)| {
                match shape.ends >> i & 1 {
                    0 => *part,
                    _ => part.end().unwrap_or_default(),
                }
            })
        };
        // What may be of any value is not empty.
        let empty = |(i, part): (usize, &Part<'_>)| {
            (shape.any >> i & 1 == 1 && part.bytes.is_empty())
                || (shape.ends >> i & 1 == 1 && part.end().is_none())
        };
        if parts.iter().take(segments).enumerate().any(empty) {
            return NONE;
        }
        let hash = kept().fold(start(number), |hash, part| step(hash, part.hash));
        self.patterns.find(hash, number as u8, |text| is_text(text, kept().map(|part| part.bytes)))
    }

    /// Gives each pattern another value.
    pub fn map(&mut self, to: impl Fn(u32) -> u32) {
        self.exact.map(&to);
        self.patterns.map(&to);
    }
}

/// Whether `text` is these segments, each behind a slash.
fn is_text<'a>(text: &[u8], mut segments: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut rest = text;
    let all = segments.all(|segment| {
        let after = rest.strip_prefix(b"/").and_then(|rest| rest.strip_prefix(segment));
        rest = after.unwrap_or_default();
        after.is_some()
    });
    all && rest.is_empty()
}

/// The first segments of a path.
struct Parts<'a> {
    parts: [Part<'a>; SEGMENTS_MAX],
    /// Of all of them, also of those that are not kept; one more than is kept at most.
    count: usize,
}

#[derive(Clone, Copy, Default)]
struct Part<'a> {
    bytes: &'a [u8],
    hash: u64,
}

impl<'a> Part<'a> {
    /// From its last colon on, where something is before that.
    fn end(&self) -> Option<Part<'a>> {
        let at = self.bytes.iter().rposition(|&byte| byte == b':').filter(|&at| at > 0)?;
        let bytes = &self.bytes[at..];
        Some(Part { bytes, hash: hash_bytes(SEED, bytes) })
    }
}

impl<'a> Parts<'a> {
    fn of(path: &'a [u8]) -> Parts<'a> {
        let mut parts = Parts { parts: [Part::default(); SEGMENTS_MAX], count: 0 };
        let Some(rest) = path.strip_prefix(b"/") else { return parts };
        for bytes in rest.split(|byte| *byte == b'/').take(SEGMENTS_MAX + 1) {
            if let Some(part) = parts.parts.get_mut(parts.count) {
                *part = Part { bytes, hash: hash_bytes(SEED, bytes) };
            }
            parts.count += 1;
        }
        parts
    }

    fn iter(&self) -> impl Iterator<Item = &Part<'a>> {
        self.parts.iter().take(self.count)
    }
}

fn start(shape: usize) -> u64 {
    SEED.0 ^ shape as u64
}

fn step(hash: u64, part: u64) -> u64 {
    fold(hash ^ part, 0xa076_1d64_78bd_642f) ^ hash.rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::new(text).expect(text)
    }

    fn matches(patterns: &[&str], path: &str) -> Vec<u32> {
        let patterns: Vec<_> = patterns.iter().map(|p| pattern(p)).collect();
        let mut table = PathTable::with_room_for(patterns.iter());
        for (i, pattern) in patterns.iter().enumerate() {
            table.find_or_insert(pattern, i as u32);
        }
        let mut hits = [NONE; HITS_MAX];
        let count = table.find(path.as_bytes(), &mut hits);
        hits[..count].sort_unstable();
        hits[..count].to_vec()
    }

    #[test]
    fn patterns_match_by_segment() {
        let all = ["/v1/chat", "/v1/{op}", "/v1/*", "/*", "/{a}/chat", "/", "/v1/", "/a/{b}/c/*"];
        let cases: [(&str, &[u32]); 12] = [
            ("/v1/chat", &[0, 1, 2, 3, 4]),
            ("/v1/models", &[1, 2, 3]),
            ("/v1/models/x", &[2, 3]),
            ("/v1/", &[2, 3, 6]),
            ("/v1", &[3]),
            ("/v2/chat", &[3, 4]),
            ("/v2/chats", &[3]),
            ("/", &[3, 5]),
            ("//chat", &[3]),
            ("/a/x/c/d/e", &[3, 7]),
            ("/a/x/c", &[3]),
            ("v1/chat", &[]),
        ];
        for (path, want) in cases {
            assert_eq!(matches(&all, path), want, "{path}");
        }
        let ends = ["/m/{id}:run", "/m/{id}:stop", "/m/{id}:stop/*", "/m/*"];
        for (path, want) in [
            ("/m/a:run", &[0, 3][..]),
            ("/m/a:b:run", &[0, 3]),
            ("/m/a:stop", &[1, 3]),
            ("/m/a:stop/x", &[2, 3]),
            ("/m/:run", &[3]),
            ("/m/run", &[3]),
            ("/m/a:runs", &[3]),
        ] {
            assert_eq!(matches(&ends, path), want, "{path}");
        }
        let long = "/x".repeat(40);
        assert_eq!(matches(&all, &long), [3]);
    }

    #[test]
    fn what_is_no_pattern() {
        let many = "/a".repeat(SEGMENTS_MAX + 1);
        for bad in ["", "v1", "*", "/v1*", "/*/x", "/{a", "/a}", "/x{a}", "/{a}{b}", "/a?b", &many]
            .into_iter()
            .chain(["/{a}x", "/{a}:", "/{a}:x:y", "/{a}:{b}", "/{a}:*", "/{a}x:y"])
        {
            assert!(PathPattern::new(bad).is_err(), "{bad}");
        }
        assert!(PathPattern::new(&"/a".repeat(SEGMENTS_MAX)).is_ok());
    }

    fn naive(pattern: &PathPattern, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let segments: Vec<&str> = rest.split('/').collect();
        let n = pattern.segments.len();
        let fits = if pattern.open { segments.len() > n } else { segments.len() == n };
        fits && pattern.segments.iter().zip(&segments).all(|(p, s)| match p {
            Segment::Exact(exact) => exact == s,
            Segment::Any => !s.is_empty(),
            Segment::Ends(end) => s.len() > end.len() && s.ends_with(&end[..]),
        })
    }

    const PATTERN: &str = "/(a|b|\\{x\\}|)(/(a|b|\\{x\\}(:a|:b|))){0,3}(/\\*)?";

    proptest! {
        #[test]
        fn all_patterns_that_match_are_found(
            patterns in prop::collection::vec(PATTERN, 1..20),
            path in "/?(a|b|)(/(a|b|)(:a|:b|)(:a|)){0,4}",
        ) {
            let patterns: Vec<_> = patterns.iter().map(|p| pattern(p)).collect();
            let mut table = PathTable::with_room_for(patterns.iter());
            let values: Vec<u32> = patterns
                .iter()
                .enumerate()
                .map(|(i, pattern)| table.find_or_insert(pattern, i as u32))
                .collect();
            let mut hits = [NONE; HITS_MAX];
            let count = table.find(path.as_bytes(), &mut hits);
            for (pattern, value) in patterns.iter().zip(values) {
                let found = hits[..count].contains(&value);
                prop_assert_eq!(found, naive(pattern, &path), "{:?} {}", pattern, path);
            }
        }
    }
}
