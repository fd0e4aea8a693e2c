//! `[admin]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::Build;
use crate::config::AdminSpec;
use crate::config::atoms::{Metrics, SocketMode};
use crate::config::file::{FileAdmin, FileConfig};

const SOCKET_DEFAULT: &str = "/run/tidegate/tidegate.sock";
/// `sun_path` of unix(7), without the final NUL.
const SOCKET_PATH_MAX: usize = 107;
const SOCKET_MODE_DEFAULT: u32 = 0o660;
const METRICS_DEFAULT: ([u8; 4], u16) = ([127, 0, 0, 1], 9_898);

pub fn admin(b: &mut Build<'_>, file: &FileConfig) -> AdminSpec {
    let none = FileAdmin::default();
    let a = file.admin.as_ref().map_or(&none, Spanned::get_ref);
    AdminSpec { socket: socket(b, a), socket_mode: socket_mode(b, a), metrics: metrics(b, a) }
}

fn socket(b: &mut Build<'_>, a: &FileAdmin) -> PathBuf {
    let Some(given) = &a.socket else { return PathBuf::from(SOCKET_DEFAULT) };
    let path = Path::new(given.get_ref());
    if !path.is_absolute() {
        b.error(&given.span(), "the path of the socket must begin with `/`");
    } else if given.get_ref().len() > SOCKET_PATH_MAX {
        let what = format!("the path of a Unix socket has {SOCKET_PATH_MAX} bytes at most");
        b.error(&given.span(), what);
    }
    path.to_path_buf()
}

fn socket_mode(b: &mut Build<'_>, a: &FileAdmin) -> u32 {
    let Some(given) = &a.socket_mode else { return SOCKET_MODE_DEFAULT };
    let SocketMode(mode) = given.get_ref().0;
    if mode & 0o600 != 0o600 {
        b.error(&given.span(), "the owner must be able to read and write: 0600 at least");
    } else if mode & 0o002 != 0 {
        b.warning(&given.span(), "everybody on this machine could stop the appliance");
    }
    mode
}

fn metrics(b: &mut Build<'_>, a: &FileAdmin) -> Option<SocketAddr> {
    let Some(given) = &a.metrics else { return Some(METRICS_DEFAULT.into()) };
    let Metrics::At(addr) = given.get_ref().0 else { return None };
    if !addr.ip().is_loopback() && a.metrics_public != Some(true) {
        let what = format!(
            "`{addr}` is not a loopback address: the page has no password; set \
             `metrics_public = true` if it is meant to be seen from elsewhere"
        );
        b.error(&given.span(), what);
    }
    Some(addr)
}
