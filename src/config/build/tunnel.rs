//! `[tunnel]`.

use toml::Spanned;

use super::Build;
use super::services::{Draft, check_unicast};
use crate::config::file::{FileConfig, FileTunnel};
use crate::forward::spec::TunnelSpec;

pub fn tunnel(b: &mut Build<'_>, file: &FileConfig, drafts: &[Draft]) -> TunnelSpec {
    let none = FileTunnel::default();
    let t = file.tunnel.as_ref().map_or(&none, Spanned::get_ref);
    let at = file.tunnel.as_ref().map_or(0..0, Spanned::span);
    let sources = b.list(&at, "sources", &t.sources, |prefix| *prefix);
    if let Some(given) = &t.sources {
        for prefix in &sources {
            check_unicast(b, prefix.addr(), &given.span());
        }
        let v4 = sources.iter().filter(|p| p.is_v4()).count();
        if v4 > 1 || sources.len() - v4 > 1 {
            b.error(&given.span(), "one prefix per family at most");
        }
    }
    let unknown = |d: &Draft| d.mode_span.is_none();
    if let Some(given) = &file.tunnel
        && !drafts.iter().any(|d| unknown(d) || d.spec.mode.is_tunnel())
    {
        b.warning(&given.span(), "no service uses ipip or gue");
    }
    let gue_port = t.gue_port.as_ref().map(|p| p.get_ref().0.0);
    TunnelSpec { sources, gue_port: gue_port.unwrap_or(TunnelSpec::default().gue_port) }
}
