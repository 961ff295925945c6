//! `curl`, and a web server just large enough for it.

use crate::ssh::plain;
use crate::stage::{Loss, ORIGIN, Stage, command, hash, hash_of, write_noise};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is transferred, in bytes.
pub(crate) const FILE: usize = 150_000_000;

pub(crate) fn download() -> Result<()> {
    download_on(&Stage::raise()?)
}

pub(crate) fn download_wrapped() -> Result<()> {
    download_on(&Stage::raise_wrapped()?)
}

fn download_on(stage: &Stage) -> Result<()> {
    let folder = stage.folder("web")?;
    let (source, copy) = (folder.join("source"), folder.join("copy"));
    let expected = write_noise(&source, FILE)?;
    let address = serve(stage, source)?;
    let client = curl(address, &["-o", plain(&copy)]);
    let mut job = stage.start("laptop", "curl", client)?;
    stage.move_twice(&mut job, Loss::LinkDown)?;
    job.succeed()?;
    ensure!(hash(&copy)? == expected, "the download differs from its source");
    Ok(())
}

pub(crate) fn upload() -> Result<()> {
    let stage = Stage::raise()?;
    let source = stage.folder("web")?.join("source");
    let expected = write_noise(&source, FILE)?;
    let address = serve(&stage, source.clone())?;
    let client = curl(address, &["-T", plain(&source)]);
    let mut job = stage.start("laptop", "curl", client)?;
    stage.move_twice(&mut job, Loss::BlackHole)?;
    let arrived = job.succeed()?;
    ensure!(arrived == expected, "something else arrived: {arrived}");
    Ok(())
}

fn curl(address: SocketAddr, arguments: &[&str]) -> Command {
    let place = format!("http://{address}/file");
    let mut curl = command("curl", ["-q", "-sS", "--fail", "--noproxy", "*", &place]);
    curl.args(arguments);
    curl
}

/// Starts the server on the origin: GET answers with the file, PUT with the hash of what came.
pub(crate) fn serve(stage: &Stage, file: PathBuf) -> Result<SocketAddr> {
    let host = stage.world().host("origin");
    let listener = host.run(|_| TcpListener::bind((ORIGIN, 80))).context("listening")?;
    let address = listener.local_addr()?;
    host.thread(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Err(error) = answer(&stream, &file) {
                // The client fails then, and the test with it.
                drop(writeln!(std::io::stderr(), "the web server: {error:?}"));
            }
        }
    });
    Ok(address)
}

fn answer(mut stream: &TcpStream, file: &Path) -> Result<()> {
    let mut input = BufReader::new(stream);
    let request = Request::read(&mut input)?;
    match request.method.as_str() {
        "GET" => {
            let mut file = File::open(file)?;
            write!(stream, "{}", head(file.metadata()?.len()))?;
            std::io::copy(&mut file, &mut stream)?;
        }
        "PUT" => {
            if request.asks_first {
                write!(stream, "HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let hash = hash_of(&mut input, request.length)?;
            write!(stream, "{}{hash}", head(hash.len() as u64))?;
        }
        other => bail!("a method nobody uses here: {other}"),
    }
    Ok(())
}

pub(crate) fn head(length: u64) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

/// What the head of a request says.
#[derive(Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) length: u64,
    asks_first: bool,
}

impl Request {
    pub(crate) fn read(input: &mut impl BufRead) -> Result<Self> {
        let mut request = Self::default();
        for (number, line) in input.lines().enumerate() {
            let line = line?;
            if line.is_empty() {
                return Ok(request);
            }
            if number == 0 {
                let mut words = line.split(' ').map(str::to_owned);
                request.method = words.next().unwrap_or_default();
                request.path = words.next().unwrap_or_default();
            }
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => request.length = value.parse()?,
                "expect" => request.asks_first = value == "100-continue",
                _ => {}
            }
        }
        bail!("the request ended early")
    }
}
