//! Routing daemons: BIRD and FRR, with configurations that are shipped or a test's own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tidegate::lab::{Namespace, Process, wait_for};

use super::Net;

/// For what takes seconds on a machine of its own.
pub const SOON: Duration = Duration::from_secs(90);

/// A configuration of `config/`.
pub fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Starts BIRD.
pub fn bird(net: &Net, ns: &Namespace, name: &str, config: &str) -> Process {
    let file = net.write(&format!("{name}.conf"), config);
    let mut command = Command::new("bird");
    command.arg("-f").arg("-c").arg(file);
    command.arg("-s").arg(net.path(&format!("{name}.ctl")));
    command.arg("-P").arg(net.path(&format!("{name}.pid")));
    ns.spawn(command).expect("bird")
}

/// Starts zebra in the appliance's namespace, and these daemons of FRR.
pub fn frr(net: &Net, config: &str, daemons: &[&str]) -> Vec<Process> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let file = net.write("frr.conf", config);
    let dir = net.path("frr");
    std::fs::create_dir_all(&dir).expect("mkdir");
    // Its daemons give up root.
    std::fs::set_permissions(net.dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let id = |flag| {
        let out = Command::new("id").args([flag, "frr"]).output().expect("id");
        String::from_utf8_lossy(&out.stdout).trim().parse::<u32>().expect("the user frr")
    };
    chown(&dir, Some(id("-u")), Some(id("-g"))).expect("chown");
    let start = |daemon: &str| {
        let mut command = Command::new(format!("/usr/lib/frr/{daemon}"));
        command.arg("-f").arg(&file).args(["-P", "0", "--log", "stdout"]);
        command.arg("-z").arg(dir.join("zserv.api")).arg("--vty_socket").arg(&dir);
        command.arg("-i").arg(dir.join(format!("{daemon}.pid")));
        net.appliance.spawn(command).expect(daemon)
    };
    let zebra = start("zebra");
    wait_for(SOON, "zebra", || dir.join("zserv.api").exists()).expect("zebra");
    std::iter::once(zebra).chain(daemons.iter().map(|daemon| start(daemon))).collect()
}
