//! One file's contents: fetched in as many pieces as it takes, and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::client::{Client, Failure, header};
use super::name::Name;
use super::store::Store;

/// Waits before a file is asked for again of which nothing came.
const WAITS: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

/// A file that is wanted.
pub(super) struct Wanted {
    pub name: String,
    pub checksum: String,
    pub size: u64,
}

/// Where files come from and go to.
pub(super) struct Source<'a> {
    pub client: &'a Client<'a>,
    pub store: &'a Store,
    pub model: &'a Name,
    pub commit: &'a str,
    /// Set where another file has failed.
    pub stop: &'a AtomicBool,
}

impl Source<'_> {
    /// Gets the contents of a file into the cache, and tells how many bytes are there as they come. The number of bytes that came over the network.
    ///
    /// # Errors
    /// What the hub refuses, what does not come after several tries, contents that are not those of the checksum, a full disk.
    pub(super) fn fetch(&self, wanted: &Wanted, at: &dyn Fn(u64)) -> Result<u64> {
        let blob = self.store.blob(&wanted.checksum);
        if length(&blob) == Some(wanted.size) {
            at(wanted.size);
            return Ok(0);
        }
        let _lock = self.store.lock(&wanted.checksum)?;
        // Whoever had the lock may have fetched it.
        if length(&blob) == Some(wanted.size) {
            at(wanted.size);
            return Ok(0);
        }
        let path = self.store.incomplete(&wanted.checksum);
        let mut partial = Partial::open(&path, wanted)?;
        let mut came = 0;
        self.fill(&mut partial, wanted, at, &mut came)?;
        if !partial.is_right(wanted) {
            // What an earlier run left may be what is wrong.
            partial.restart()?;
            self.fill(&mut partial, wanted, at, &mut came)?;
        }
        if !partial.is_right(wanted) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            bail!(
                "{}: {}: what came is not what the hub has by its checksum ({}), twice: try again later",
                self.model,
                wanted.name,
                wanted.checksum
            );
        }
        fs::rename(&path, &blob).with_context(|| format!("cannot make {}", blob.display()))?;
        Ok(came)
    }

    /// Fetches what is missing, from where the last connection ended.
    fn fill(&self, partial: &mut Partial<'_>, wanted: &Wanted, at: &dyn Fn(u64), came: &mut u64) -> Result<()> {
        let mut failed = 0;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                bail!("{}: {}: not fetched, since another file failed", self.model, wanted.name);
            }
            at(partial.length);
            if partial.length == wanted.size {
                return Ok(());
            }
            let before = *came;
            let (why, wait) = match self.continued(partial, wanted, at, came) {
                Ok(()) => continue,
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(why, wait)) => (why, wait),
            };
            // Where something came, the next try is the first again.
            failed = if *came > before { 0 } else { failed + 1 };
            let pause = if failed == 0 { Some(&Duration::ZERO) } else { WAITS.get(failed - 1) };
            let Some(pause) = pause else {
                bail!(
                    "{}: {}: {why}; {} of {} bytes are there: the same command goes on from there",
                    self.model,
                    wanted.name,
                    partial.length,
                    wanted.size
                );
            };
            sleep(wait.unwrap_or(*pause));
        }
    }

    /// Asks once for what is missing, and takes what comes.
    fn continued(
        &self,
        partial: &mut Partial<'_>,
        wanted: &Wanted,
        at: &dyn Fn(u64),
        came: &mut u64,
    ) -> Result<(), Failure> {
        let answer = self.client.get(self.model, self.commit, &wanted.name, partial.length)?;
        match answer.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.restart().map_err(Failure::Lasting)?;
                return Err(Failure::Passing("the server has no bytes from there on".to_owned(), None));
            }
            StatusCode::PARTIAL_CONTENT if begins_at(&answer, partial.length) => {}
            // The whole, or another part than was asked for.
            StatusCode::OK => partial.restart().map_err(Failure::Lasting)?,
            status => {
                return Err(Failure::Lasting(anyhow!(
                    "{}: the answer is {status}, which was not asked for",
                    wanted.name
                )));
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Passing("stopped".to_owned(), None));
            }
            let count = match body.read(&mut piece) {
                Ok(0) if partial.length < wanted.size => {
                    return Err(Failure::Passing("the connection ended early".to_owned(), None));
                }
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) => return Err(Failure::Passing(error.to_string(), None)),
            };
            *came += count as u64;
            if partial.length + count as u64 > wanted.size {
                let why = format!("{}: more bytes came than the {} that the hub has", wanted.name, wanted.size);
                return Err(Failure::Lasting(anyhow!(why)));
            }
            partial.take(&piece[..count]).map_err(Failure::Lasting)?;
            at(partial.length);
        }
    }
}

/// Whether an answer holds the bytes from `start` on.
fn begins_at(answer: &Response<Body>, start: u64) -> bool {
    let range = header(answer, "content-range").and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()) == Some(start)
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|file| file.len())
}

/// What is there of a file, and its checksum so far.
struct Partial<'a> {
    file: File,
    path: &'a Path,
    length: u64,
    hash: Hash,
    empty: Hash,
}

#[derive(Clone)]
enum Hash {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hash {
    /// The one that a checksum is of.
    fn of(wanted: &Wanted) -> Hash {
        if wanted.checksum.len() == 64 {
            return Hash::Sha256(Sha256::new());
        }
        // Git's of a file begins with what it is.
        Hash::Sha1(Sha1::new_with_prefix(format!("blob {}\0", wanted.size)))
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha1(hash) => hash.update(bytes),
            Hash::Sha256(hash) => hash.update(bytes),
        }
    }

    fn text(&self) -> String {
        let bytes = match self.clone() {
            Hash::Sha1(hash) => hash.finalize().to_vec(),
            Hash::Sha256(hash) => hash.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier run left.
    fn open(path: &'a Path, wanted: &Wanted) -> Result<Partial<'a>> {
        let file = OpenOptions::new().create(true).read(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let empty = Hash::of(wanted);
        let mut partial = Partial { file, path, length: 0, hash: empty.clone(), empty };
        let mut piece = vec![0; PIECE];
        loop {
            match partial.file.read(&mut piece).with_context(|| format!("cannot read {}", path.display()))? {
                0 => break,
                count => {
                    partial.hash.update(&piece[..count]);
                    partial.length += count as u64;
                }
            }
        }
        if partial.length > wanted.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot empty {}", self.path.display()))?;
        self.hash = self.empty.clone();
        self.length = 0;
        Ok(())
    }

    fn is_right(&self, wanted: &Wanted) -> bool {
        // Where a file system keeps no locks, another process may have written to the file too.
        let alone = length(self.path) == Some(self.length);
        alone && self.length == wanted.size && self.hash.text() == wanted.checksum
    }
}
