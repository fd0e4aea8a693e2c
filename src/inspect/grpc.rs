//! gRPC over HTTP/2: what a request calls.

use super::fields::{Fields, NameId};

/// A gRPC call, as its path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// With its package: `inference.GRPCInferenceService`.
    pub service: &'a [u8],
    pub method: &'a [u8],
}

/// The call that a request makes, if its content type is one of gRPC (`application/grpc`, with `+`
/// and an encoding or with parameters) and its path names one.
pub fn call(fields: &Fields) -> Option<Call<'_>> {
    let kind = fields.get(NameId::CONTENT_TYPE)?;
    let rest = kind.strip_prefix(b"application/grpc")?;
    if !matches!(rest.first(), None | Some(b'+' | b';')) || fields.truncated(NameId::PATH) {
        return None;
    }
    let path = fields.path()?.strip_prefix(b"/")?;
    let at = path.iter().rposition(|b| *b == b'/')?;
    let (service, method) = (&path[..at], &path[at + 1..]);
    (!service.is_empty() && !method.is_empty()).then_some(Call { service, method })
}

/// The status in a response's trailers, or in its only headers: 0 is OK.
pub fn status(fields: &Fields) -> Option<u32> {
    std::str::from_utf8(fields.get(NameId::GRPC_STATUS)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::fields::{Sink, Wanted};
    use super::*;

    fn fields(path: &str, kind: &str, status: &str) -> Fields {
        let wanted = Wanted::new([]).unwrap();
        let mut fields = Fields::new(&wanted, 32);
        for (name, value) in [(":path", path), ("content-type", kind), ("grpc-status", status)] {
            fields.begin(wanted.id(name.as_bytes()));
            fields.value(value.as_bytes());
            fields.end();
        }
        fields
    }

    #[test]
    fn calls() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x"] {
            let fields = fields("/vllm.v1.Engine/Generate", kind, "0");
            let call = call(&fields).unwrap();
            assert_eq!((call.service, call.method), (&b"vllm.v1.Engine"[..], &b"Generate"[..]));
        }
        assert_eq!(call(&fields("/a/b", "application/grpcx", "")), None);
        assert_eq!(call(&fields("/a/b", "application/json", "")), None);
        for path in ["/a", "/a/", "//b", "a/b", "/cut.off.because.it.is.too.long/Generate"] {
            assert_eq!(call(&fields(path, "application/grpc", "")), None, "{path}");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(status(&fields("", "", "14")), Some(14));
        assert_eq!(status(&fields("", "", "x")), None);
    }
}
