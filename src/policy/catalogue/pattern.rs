//! Patterns of hosts, label by label, and of paths, segment by segment.

use crate::policy::normal::is_encoded;

/// A host with wildcards: `*` as the first label stands for one or more, elsewhere for exactly one;
/// within a label for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// Lower case, last label first.
    labels: Vec<Label>,
    /// More labels may follow.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    Any,
    Exact(Box<[u8]>),
    /// What the label begins and ends with.
    Around(Box<[u8]>, Box<[u8]>),
}

impl HostPattern {
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<HostPattern, &'static str> {
        let mut labels = Vec::new();
        for label in text.rsplit('.') {
            let bytes = |part: &str| part.to_ascii_lowercase().into_bytes().into_boxed_slice();
            labels.push(match label.split_once('*') {
                None if label.is_empty() => return Err("has an empty label"),
                None => Label::Exact(bytes(label)),
                Some(("", "")) => Label::Any,
                Some((_, after)) if after.contains('*') => return Err("has two `*` in one label"),
                Some((before, after)) => Label::Around(bytes(before), bytes(after)),
            });
        }
        let exact_end = labels.iter().take(2).all(|label| matches!(label, Label::Exact(_)));
        if labels.len() < 2 || !exact_end {
            return Err("needs two labels at its end without `*`");
        }
        let open = labels.last() == Some(&Label::Any);
        Ok(HostPattern { labels, open })
    }

    /// `host` is in lower case.
    pub fn matches(&self, host: &[u8]) -> bool {
        let mut labels = host.rsplit(|&byte| byte == b'.');
        for pattern in &self.labels {
            let Some(label) = labels.next().filter(|label| !label.is_empty()) else {
                return false;
            };
            let fits = match pattern {
                Label::Any => true,
                Label::Exact(exact) => **exact == *label,
                Label::Around(before, after) => {
                    label.len() > before.len() + after.len()
                        && label.starts_with(before)
                        && label.ends_with(after)
                }
            };
            if !fits {
                return false;
            }
        }
        match self.open {
            true => labels.all(|label| !label.is_empty()),
            false => labels.next().is_none(),
        }
    }

    /// Its last two labels, as [`tail_of`] finds them in a host.
    pub fn tail(&self) -> Box<[u8]> {
        let mut labels = self.labels.iter().filter_map(|label| match label {
            Label::Exact(exact) => Some(&**exact),
            _ => None,
        });
        let (last, before) = (labels.next(), labels.next());
        [before.unwrap_or_default(), b".", last.unwrap_or_default()].concat().into_boxed_slice()
    }

    /// Larger for patterns that match more.
    pub fn looseness(&self) -> (bool, usize) {
        (self.open, self.labels.iter().filter(|l| !matches!(l, Label::Exact(_))).count())
    }
}

/// The last two labels of a host.
pub fn tail_of(host: &[u8]) -> &[u8] {
    let mut dots = (0..host.len()).rev().filter(|&at| host[at] == b'.');
    dots.nth(1).map_or(host, |at| &host[at + 1..])
}

/// A host without the port and the dot that may end it.
pub fn bare_host(host: &[u8]) -> &[u8] {
    let name = without_port(host);
    name.strip_suffix(b".").unwrap_or(name)
}

/// A host without the port.
pub fn without_port(host: &[u8]) -> &[u8] {
    let colon = host.iter().rposition(|&byte| byte == b':');
    match colon {
        Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => &host[..at],
        _ => host,
    }
}

/// A path with wildcards: `{}` stands for a segment, `{}:x` for one that ends in `:x`, a last `*`
/// for all that may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    open: bool,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(Box<[u8]>),
    /// What a segment of any beginning ends with; nothing for any.
    Ending(Box<[u8]>),
}

impl PathPattern {
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<PathPattern, &'static str> {
        let rest = text.strip_prefix('/').ok_or("does not begin with `/`")?;
        if !is_encoded(rest) {
            return Err("has a `%` without two hexadecimal digits (RFC 3986, section 2.1)");
        }
        let (rest, open) = match rest.strip_suffix("/*") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let segments = rest.split('/').map(|segment| match segment.strip_prefix("{}") {
            Some(end) if end.is_empty() || end.starts_with(':') => {
                Ok(Segment::Ending(end.as_bytes().into()))
            }
            None if !segment.contains(['*', '{', '}']) => {
                Ok(Segment::Exact(segment.as_bytes().into()))
            }
            _ => Err("has a `*` before its end, or a `{` that is not a whole `{}`"),
        });
        Ok(PathPattern { segments: segments.collect::<Result<_, _>>()?, open, bytes: text.len() })
    }

    /// `path` has no query.
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(b"/") else { return false };
        let mut segments = rest.split(|&byte| byte == b'/');
        for pattern in &self.segments {
            let Some(segment) = segments.next() else { return false };
            let fits = match pattern {
                Segment::Exact(exact) => **exact == *segment,
                Segment::Ending(end) => segment.len() > end.len() && segment.ends_with(end),
            };
            if !fits {
                return false;
            }
        }
        self.open == segments.next().is_some()
    }

    /// Larger for patterns that match more.
    pub fn looseness(&self) -> (bool, usize, std::cmp::Reverse<usize>) {
        let any = self.segments.iter().filter(|s| matches!(s, Segment::Ending(_))).count();
        (self.open, any, std::cmp::Reverse(self.bytes))
    }
}

/// A target without scheme and authority, query and fragment.
pub fn bare_path(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|byte| b"?#".contains(byte)).unwrap_or(target.len());
    let target = &target[..end];
    if target.starts_with(b"/") {
        return target;
    }
    let Some(at) = target.windows(3).position(|part| part == b"://") else { return target };
    let behind = &target[at + 3..];
    behind.iter().position(|&byte| byte == b'/').map_or(b"/", |slash| &behind[slash..])
}
