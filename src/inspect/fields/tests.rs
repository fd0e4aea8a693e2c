//! What is kept of fields, and what is told of messages.

use super::*;

fn fields(extra: &[&str], said: &[(&str, &str)]) -> (Wanted, Fields) {
    let wanted = Wanted::new(extra.iter().copied()).unwrap();
    let mut fields = Fields::new(&wanted, 16);
    for (name, value) in said {
        fields.begin(wanted.id(name.as_bytes()));
        fields.value(value.as_bytes());
        fields.end();
    }
    (wanted, fields)
}

#[test]
fn names_are_found_by_their_bytes() {
    let wanted = Wanted::new(["X-Tenant", "x-tenant", "host"]).unwrap();
    let id = wanted.id(b"x-tenant");
    assert!(id.is_wanted() && wanted.name(id) == Some(b"x-tenant"));
    assert_eq!(wanted.id(b"host"), NameId::HOST);
    assert_eq!(wanted.id(b":status"), NameId::STATUS);
    assert_eq!(wanted.id(b"http2-settings"), NameId::HTTP2_SETTINGS);
    for other in [&b"x-tenanu"[..], b"", b"Host", &[b'a'; 500]] {
        assert_eq!(wanted.id(other), NameId::OTHER);
    }
    assert_eq!(wanted.name(NameId::OTHER), None);
}

#[test]
fn names_that_are_none_are_refused() {
    let long = "a".repeat(NAME_BYTES_MAX + 1);
    let error = |name: &str| Wanted::new([name]).unwrap_err();
    assert_eq!(error(&long), WantedError::TooLong(long.clone()));
    for name in ["", "a b", ":", "a:b", "é"] {
        assert_eq!(error(name), WantedError::NotAName(name.to_owned()));
    }
    let many: Vec<String> = (0..=EXTRA_NAMES_MAX).map(|i| format!("x-{i}")).collect();
    assert_eq!(Wanted::new(many.iter().map(String::as_str)).err(), Some(WantedError::TooMany));
    assert!(Wanted::new(many[1..].iter().map(String::as_str)).is_ok());
}

#[test]
fn long_values_are_cut_and_marked() {
    let (_, fields) = fields(&[], &[(":path", "/0123456789abcdef"), (":method", "GET")]);
    assert_eq!(fields.path(), Some(&b"/0123456789abcde"[..]));
    assert!(fields.truncated(NameId::PATH) && !fields.truncated(NameId::METHOD));
    assert_eq!(fields.method(), Some(&b"GET"[..]));
    assert_eq!(fields.authority(), None);
}

#[test]
fn what_stands_twice() {
    let said = [("host", "a"), ("x-t", "1"), ("x-t", "2"), ("host", "b"), ("no", "3")];
    let (wanted, fields) = fields(&["x-t"], &said);
    assert_eq!(fields.get(wanted.id(b"x-t")), Some(&b"1, 2"[..]));
    assert_eq!(fields.authority(), Some(&b"a"[..]));
    assert!(fields.repeated(NameId::HOST) && !fields.is_malformed());
}

#[test]
fn rules_of_http2_messages() {
    assert!(fields(&[], &[("no", ""), (":method", "GET")]).1.is_malformed());
    assert!(fields(&[], &[(":method", "GET"), (":method", "GET")]).1.is_malformed());
    assert!(!fields(&[], &[(":method", "GET"), ("no", "")]).1.is_malformed());
    let (_, mut fields) = fields(&[], &[]);
    fields.begin(NameId::UNKNOWN);
    assert!(fields.has_unknown() && !fields.is_malformed());
    fields.clear();
    assert!(!fields.has_unknown());
    fields.begin(NameId::FORBIDDEN);
    assert!(fields.is_malformed());
}

#[test]
fn statuses_and_media_types() {
    let status = |value| fields(&[], &[(":status", value)]).1.status();
    assert_eq!(status("200"), Some(200));
    assert_eq!([status("20"), status("2000"), status("20x"), status("")], [None; 4]);
    let events = |value| fields(&[], &[("content-type", value)]).1.is_event_stream();
    assert!(events("Text/Event-Stream ; charset=utf-8") && events("text/event-stream"));
    assert!(!events("text/event-streams") && !events("text/plain;text/event-stream"));
}
