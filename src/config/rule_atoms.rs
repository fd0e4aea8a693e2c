//! Values that only rules have.

use crate::base::tomlfile::Atom;
use crate::inspect::fields::EXTRA_VALUE_BYTES;
use crate::policy::catalogue::Operation;
use crate::policy::spec::{HeaderPattern, Hours, PathPattern, Weekdays, Zone};

/// A fingerprint such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub String);

impl Atom for Fingerprint {
    const EXPECTED: &'static str =
        "a JA4 fingerprint such as \"t13d1516h2_8daaf6152771_e5627efa2ab1\"";

    fn from_text(text: &str) -> Result<Fingerprint, String> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('_').collect();
        let hex = |part: &str| part.len() == 12 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let first = |part: &str| part.len() == 10 && part.is_ascii();
        match parts[..] {
            [a, b, c] if first(a) && hex(b) && hex(c) => Ok(Fingerprint(lower)),
            _ => Err(format!("`{text}` is not {}", Self::EXPECTED)),
        }
    }
}

/// A method of HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method(pub String);

impl Atom for Method {
    const EXPECTED: &'static str = "a method such as \"POST\"";

    fn from_text(text: &str) -> Result<Method, String> {
        let upper = text.to_ascii_uppercase();
        if !is_token(text) || text.len() > 32 {
            return Err(format!("`{text}` is not a method (RFC 9110, section 9.1)"));
        }
        if upper != text {
            return Err(format!("methods are told apart by case: did you mean `{upper}`?"));
        }
        Ok(Method(upper))
    }
}

/// A path, a prefix, or a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub PathPattern);

impl Atom for Path {
    const EXPECTED: &'static str =
        "a path such as \"/v1/chat/completions\", \"/v1/models/{model}\" or \"/v1/*\"";

    fn from_text(text: &str) -> Result<Path, String> {
        PathPattern::new(text).map(Path).map_err(|what| format!("`{text}` {what}"))
    }
}

/// A header field's value; `*` for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderValue(pub HeaderPattern);

impl Atom for HeaderValue {
    const EXPECTED: &'static str = "a header's value, or \"*\" for any,";

    fn from_text(text: &str) -> Result<HeaderValue, String> {
        if text == "*" {
            return Ok(HeaderValue(HeaderPattern::Any));
        }
        let printable = |b: u8| b == b'\t' || (b >= b' ' && b != 127);
        if text.trim_matches([' ', '\t']) != text || !text.bytes().all(printable) {
            return Err(format!("no header has the value `{text}` (RFC 9110, section 5.5)"));
        }
        if text.len() > EXTRA_VALUE_BYTES {
            return Err(format!("of a header's value {EXTRA_VALUE_BYTES} bytes are looked at"));
        }
        Ok(HeaderValue(HeaderPattern::Exact(text.to_owned())))
    }
}

/// A gRPC service, or one of its methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcName(pub String);

impl Atom for GrpcName {
    const EXPECTED: &'static str =
        "a gRPC service such as \"inference.GRPCInferenceService\", or \"service/Method\",";

    fn from_text(text: &str) -> Result<GrpcName, String> {
        let name = |part: &str| {
            let char_ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
            !part.is_empty() && part.bytes().all(char_ok)
        };
        let (service, method) = text.split_once('/').unwrap_or((text, "Any"));
        match name(service) && name(method) {
            true => Ok(GrpcName(text.to_owned())),
            false => Err(format!("`{text}` is neither a gRPC service nor `service/Method`")),
        }
    }
}

/// Who serves it, as the catalogue names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderName(pub String);

impl Atom for ProviderName {
    const EXPECTED: &'static str = "a provider of the catalogue such as \"openai\"";

    fn from_text(text: &str) -> Result<ProviderName, String> {
        Ok(ProviderName(text.to_owned()))
    }
}

/// What a request asks for, as the catalogue names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationName(pub Operation);

impl Atom for OperationName {
    const EXPECTED: &'static str = "an operation such as \"chat\"";

    fn from_text(text: &str) -> Result<OperationName, String> {
        let found = Operation::ALL.into_iter().find(|operation| operation.name() == text);
        found.map(OperationName).ok_or_else(|| {
            let names: Vec<&str> = Operation::ALL.into_iter().map(Operation::name).collect();
            format!("`{text}` is no operation; known: {}", names.join(", "))
        })
    }
}

/// A time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneName(pub Zone);

impl Atom for ZoneName {
    const EXPECTED: &'static str = "a time zone such as \"Europe/Berlin\" or \"UTC\"";

    fn from_text(text: &str) -> Result<ZoneName, String> {
        Zone::new(text)
            .map(ZoneName)
            .ok_or_else(|| format!("`{text}` is no time zone of the IANA database"))
    }
}

/// A weekday, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(pub Weekdays);

impl Atom for Days {
    const EXPECTED: &'static str = "a weekday or a range of them, such as \"sat\" or \"mon-fri\"";

    fn from_text(text: &str) -> Result<Days, String> {
        Weekdays::parse(text).map(Days).ok_or_else(|| format!("`{text}` is not {}", Self::EXPECTED))
    }
}

/// Hours of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourRange(pub Hours);

impl Atom for HourRange {
    const EXPECTED: &'static str = "a range of hours such as \"08:00-18:00\" or \"22:00-06:00\"";

    fn from_text(text: &str) -> Result<HourRange, String> {
        Hours::parse(text)
            .map(HourRange)
            .ok_or_else(|| format!("`{text}` is not {}", Self::EXPECTED))
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let byte_ok = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(byte_ok)
}
