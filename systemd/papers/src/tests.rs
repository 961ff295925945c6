use std::collections::BTreeMap;

use clap::Command;
use whimbrel_common::config::{ClientConfig, GatewayConfig};

use super::*;

/// The papers of a program by their path.
fn written(program: &Program) -> BTreeMap<String, String> {
    let text = |paper: &Paper| String::from_utf8(paper.text.clone()).unwrap();
    let papers = papers(program).unwrap();
    papers.iter().map(|it| (it.path.to_str().unwrap().to_owned(), text(it))).collect()
}

/// The long options of a command, as they are typed.
fn options(command: &Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|it| !it.is_hide_set());
    shown.filter_map(|it| it.get_long()).map(|long| format!("--{long}")).collect()
}

/// A page as it is typed: roff writes a hyphen that can be copied as `\-`.
fn typed(page: &str) -> String {
    page.replace("\\-", "-").replace("\\.", ".")
}

#[test]
fn every_command_and_option_has_its_place_in_a_page_and_in_each_shell() {
    for (program, own) in
        Program::all().iter().zip([whimbrel::cli::command(), whimbrel_gateway::cli::command()])
    {
        let papers = written(program);
        let name = program.package();
        let main = typed(&papers[&format!("man/man1/{name}.1")]);
        let shells: Vec<&String> =
            papers.iter().filter(|(path, _)| path.contains("completions")).map(|it| it.1).collect();
        assert_eq!(shells.len(), 3);
        let (hidden, shown): (Vec<_>, Vec<_>) =
            own.get_subcommands().partition(|sub| sub.is_hide_set());
        assert!(shown.len() > 5);
        for sub in shown {
            let page = format!("{name}-{}", sub.get_name());
            assert!(main.contains(&format!("{page}(1)")), "{page} is not in the page of {name}");
            let text = typed(&papers[&format!("man/man1/{page}.1")]);
            for option in options(sub) {
                assert!(text.contains(&option), "{option} is not in the page of {page}");
                for shell in &shells {
                    let bare = option.trim_start_matches('-');
                    assert!(shell.contains(bare), "{option} of {page} is not in {shell}");
                }
            }
            for shell in &shells {
                assert!(shell.contains(sub.get_name()), "{page} is not in {shell}");
            }
        }
        for sub in hidden {
            let page = format!("man/man1/{name}-{}.1", sub.get_name());
            assert!(!papers.contains_key(&page), "{page} is of a hidden command");
            for text in papers.values() {
                assert!(
                    !text.contains(sub.get_name()),
                    "{} is hidden, not in {text}",
                    sub.get_name()
                );
            }
        }
    }
}

#[test]
fn every_key_is_in_the_page_of_its_file_with_its_default() {
    for program in Program::all() {
        let papers = written(&program);
        let page = typed(&papers[&format!("man/man5/{}.5", program.config_page())]);
        for line in
            program.sample.lines().filter(|line| line.contains(" = ") && !line.starts_with('#'))
        {
            let (key, value) = line.split_once(" = ").unwrap();
            let (_, after) =
                page.split_once(&format!("\\fB{key}\\fR\n")).unwrap_or_else(|| panic!("{key}"));
            assert!(after.contains(value), "{key} is shown without {value}");
        }
    }
}

#[test]
fn the_examples_are_the_defaults() {
    let [client, gateway] = Program::all().map(|program| {
        let folder = format!("doc/{}/examples/{}", program.package(), program.config_name());
        written(&program).remove(&folder).unwrap()
    });
    let read = ClientConfig::parse(&client, "client.toml").unwrap();
    assert_eq!(read, ClientConfig::new(&read.gateway, &read.gateway_key));
    let read = GatewayConfig::parse(&gateway, "gateway.toml").unwrap();
    assert_eq!(read, GatewayConfig::new(&read.public));
}

#[test]
fn the_copyright_has_an_owner_and_both_licences() {
    let [program, _] = Program::all();
    let text = written(&program).remove("doc/whimbrel/copyright").unwrap();
    assert!(text.contains("\nCopyright: 2026 The Whimbrel authors\n"), "{text}");
    assert!(text.contains("\n Permission is hereby granted, free of charge"), "{text}");
    assert!(text.contains("\n SOFTWARE.\n\nLicense: Apache-2.0\n"), "{text}");
}

/// The files of a folder and of those in it, by their path from `root`.
fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_papers_in_the_sources_are_what_the_programs_say_of_themselves() {
    for program in Program::all() {
        let tree = Path::new(SHARE).join(program.package());
        let (mut found, wanted) = (BTreeMap::new(), written(&program));
        collect(&tree, &tree, &mut found);
        let all: std::collections::BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
        for path in all {
            assert!(
                found.get(path) == wanted.get(path),
                "systemd/share/{}/{path} is out of date: cargo run -p whimbrel-papers",
                program.package()
            );
        }
    }
}

#[test]
fn the_changelogs_of_the_packages_begin_with_this_version() {
    for (folder, package) in [("client", "whimbrel"), ("server", "whimbrel-gateway")] {
        let path = Path::new(SHARE).join("../..").join(folder).join("debian/changelog");
        let first = fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(first, format!("{package} ({version}-1) unstable; urgency=medium"));
    }
}

/// What lies in `systemd/` for machines to have is in one of the packages.
#[test]
fn every_file_for_an_installation_is_in_a_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let manifests = ["client", "server"]
        .map(|folder| fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap());
    let mut files = 0;
    for entry in fs::read_dir(root.join("systemd")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // Programs and folders make packages and are not in them.
        if entry.path().is_dir() || !name.contains('.') {
            continue;
        }
        files += 1;
        let asset = format!("\"../systemd/{name}\"");
        let packed = manifests.iter().any(|manifest| manifest.contains(&asset));
        assert!(packed, "{name} is in no package: list it among the assets");
    }
    assert!(files > 5);
}
