//! `whimbrel demo`: becomes `whimbrel-demo`, where that is installed.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::fs::{Access, access};

const PROGRAM: &str = "whimbrel-demo";

pub(super) fn demo(command: Vec<OsString>) -> anyhow::Result<()> {
    let beside = env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let Some(program) = find(beside, env::var_os("PATH")) else {
        bail!(
            "{PROGRAM} is not installed beside this program or on the PATH; build it in the source \
             tree with `cargo run --release --bin {PROGRAM}`"
        );
    };
    let mut demo = Command::new(&program);
    if !command.is_empty() {
        demo.arg("--").args(command);
    }
    // Returns only if it failed.
    Err(demo.exec()).with_context(|| format!("cannot start {}", program.display()))
}

fn find(beside: Option<PathBuf>, path: Option<OsString>) -> Option<PathBuf> {
    let folders = path.as_deref().map(env::split_paths).into_iter().flatten();
    beside
        .into_iter()
        .chain(folders)
        .map(|folder| folder.join(PROGRAM))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_demo_beside_the_program_comes_first_and_must_be_executable() {
        let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
        let folder = env::temp_dir().join(format!("whimbrel-demo-{number:016x}"));
        let (beside, path) = (folder.join("beside"), folder.join("path"));
        for place in [&beside, &path] {
            std::fs::create_dir_all(place).unwrap();
            std::fs::write(place.join(PROGRAM), "").unwrap();
        }
        let look = || find(Some(beside.clone()), Some(path.clone().into_os_string()));
        assert_eq!(look(), None);
        let executable = |place: &Path| {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(place.join(PROGRAM), mode).unwrap();
        };
        executable(&path);
        assert_eq!(look(), Some(path.join(PROGRAM)));
        executable(&beside);
        assert_eq!(look(), Some(beside.join(PROGRAM)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
