//! Chromium, and a page that fetches for long and tells what it got.

use crate::curl::{FILE, Request, head};
use crate::ssh::plain;
use crate::stage::{Loss, ORIGIN, Stage, command, write_noise};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Reads the file as it comes, and tells how long it is and what its bytes add up to.
const PAGE: &str = "<!doctype html><title>whimbrel</title><script>
(async () => {
  const reader = (await fetch('/file')).body.getReader();
  let bytes = 0, sum = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    for (let i = 0; i < value.length; i++) sum = (Math.imul(sum, 31) + value[i]) >>> 0;
    bytes += value.length;
  }
  return `${bytes} ${sum}`;
})().catch(String).then(word => fetch('/word', { method: 'PUT', body: word }));
</script>";

pub(crate) fn browse_wrapped() -> Result<()> {
    let stage = Stage::raise_wrapped()?;
    let folder = stage.folder("web")?;
    let source = folder.join("source");
    write_noise(&source, FILE)?;
    let sum = fs::read(&source)?
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    let (address, words) = serve(&stage, source)?;
    let mut job = stage.start("laptop", "chromium", chromium(address, &folder))?;
    stage.move_twice(&mut job, Loss::BlackHole)?;
    let mut word = None;
    job.until("it told what it got", || {
        word = word.take().or_else(|| words.try_recv().ok());
        Ok(word.is_some())
    })?;
    let expected = format!("{FILE} {sum}");
    ensure!(word.as_deref() == Some(expected.as_str()), "{word:?} instead of {expected}");
    Ok(())
}

fn chromium(address: SocketAddr, home: &Path) -> Command {
    let profile = format!("--user-data-dir={}", plain(&home.join("profile")));
    let place = format!("http://{address}/");
    // Its sandbox is not for a user who is root without any privilege.
    let quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
    let still = ["--no-first-run", "--disable-background-networking", "--disable-extensions"];
    let mut chromium = command("chromium", quiet.iter().chain(&still));
    chromium.args([profile.as_str(), "--remote-debugging-port=0", &place]).env("HOME", home);
    chromium
}

/// Starts the server on the origin: the page, its file, and what it tells.
fn serve(stage: &Stage, file: PathBuf) -> Result<(SocketAddr, Receiver<String>)> {
    let host = stage.world().host("origin");
    let listener = host.run(|_| TcpListener::bind((ORIGIN, 80))).context("listening")?;
    let address = listener.local_addr()?;
    let (sender, words) = channel();
    let file = Arc::new(file);
    host.thread(move || {
        // A browser opens connections that it may never use.
        for stream in listener.incoming().map_while(Result::ok) {
            let (file, sender) = (Arc::clone(&file), sender.clone());
            std::thread::spawn(move || {
                if let Err(error) = answer(&stream, &file, &sender) {
                    drop(writeln!(std::io::stderr(), "the web server: {error:?}"));
                }
            });
        }
    });
    Ok((address, words))
}

fn answer(mut stream: &TcpStream, file: &Path, words: &Sender<String>) -> Result<()> {
    let mut input = BufReader::new(stream);
    let request = Request::read(&mut input)?;
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => write!(stream, "{}{PAGE}", head(PAGE.len() as u64))?,
        ("GET", "/file") => {
            let mut file = File::open(file)?;
            write!(stream, "{}", head(file.metadata()?.len()))?;
            std::io::copy(&mut file, &mut stream)?;
        }
        ("PUT", "/word") => {
            let mut word = String::new();
            input.take(request.length).read_to_string(&mut word)?;
            words.send(word)?;
            write!(stream, "{}", head(0))?;
        }
        ("GET", "/favicon.ico") => write!(stream, "{}", head(0))?,
        (method, path) => bail!("nobody asks for this here: {method} {path}"),
    }
    Ok(())
}
