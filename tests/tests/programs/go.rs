//! A program without the system's libraries: statically linked, with the network of its own runtime.

use crate::curl::{FILE, serve};
use crate::stage::{Loss, Stage, command, hash, write_noise};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Fetches a file by HTTP and prints it.
const SOURCE: &str = r#"package main

import (
	"bufio"
	"io"
	"net"
	"os"
)

func must(err error) {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

func main() {
	stream, err := net.Dial("tcp", os.Args[1])
	must(err)
	_, err = io.WriteString(stream, "GET /file HTTP/1.1\r\nHost: origin\r\n\r\n")
	must(err)
	input := bufio.NewReader(stream)
	for line := ""; line != "\r\n"; {
		line, err = input.ReadString('\n')
		must(err)
	}
	_, err = io.Copy(os.Stdout, input)
	must(err)
}
"#;

pub(crate) fn download_wrapped() -> Result<()> {
    let stage = Stage::raise_wrapped()?;
    let folder = stage.folder("web")?;
    let program = build(&folder)?;
    let source = folder.join("source");
    let expected = write_noise(&source, FILE)?;
    let address = serve(&stage, source)?;
    let mut job = stage.start("laptop", "go", command(program, [address.to_string()]))?;
    stage.move_twice(&mut job, Loss::LinkDown)?;
    let printed = job.output().to_owned();
    job.end()?;
    ensure!(hash(&printed)? == expected, "the download differs from its source");
    Ok(())
}

fn build(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("main.go"), folder.join("main"));
    fs::write(&source, SOURCE)?;
    let mut go = command("go", ["build", "-o"]);
    go.arg(&program).arg(&source).current_dir(folder);
    go.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOTOOLCHAIN", "local");
    go.env("GOCACHE", folder.join("cache")).env("GOPATH", folder.join("path"));
    let output = go.output().context("starting go")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dynamic = b"ld-linux";
    let bytes = fs::read(&program)?;
    let is_dynamic = bytes.windows(dynamic.len()).any(|part| part == dynamic);
    ensure!(!is_dynamic, "it is not linked statically");
    Ok(program)
}
