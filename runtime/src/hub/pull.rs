//! From a name to a model's files in the cache.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use fusec::{files, threads};

use super::blob::{Source, Wanted};
use super::choose::{Choice, INDEX, Listed, beside, choose, weights};
use super::client::{Client, Failure, is_checksum};
use super::name::Name;
use super::settings::Settings;
use super::store::Store;

/// Files that are fetched side by side.
const SIDE_BY_SIDE: usize = 4;

/// Waits before the hub is asked again about what is to be fetched.
const WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// Space that is left to others on a disk.
const SPARE: u64 = 64 << 20;

/// How a pull goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The files with the weights, and the bytes of each; numbers below are places in this list.
    Files(&'a [(String, u64)]),
    /// So many bytes of a file are there.
    At(usize, u64),
    /// A file is there.
    Done(usize),
}

/// A model that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What to give as a model: the folder, or the (first) .gguf file.
    pub path: PathBuf,
    /// The commit of its files.
    pub commit: String,
    /// How many files it has.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that came over the network.
    pub fetched: u64,
}

/// What is in the cache under a name: a folder or a .gguf file; none where the revision is not there.
///
/// # Errors
/// A name that does not tell which file is meant, files that are missing.
pub fn find(settings: &Settings, name: &Name) -> Result<Option<PathBuf>> {
    let store = Store::of(&settings.cache, name.repository());
    let Some(commit) = store.commit(name.revision()) else { return Ok(None) };
    let there = |name: String| Listed { name, size: None, checksum: None };
    let files: Vec<Listed> = store.files(&commit)?.into_iter().map(there).collect();
    let found = found(&store.snapshot(&commit), name, &files);
    found.map(Some).with_context(|| {
        format!(
            "of {name}, the hub's cache has {}; `fuserun pull {name}` gets what is missing",
            store.snapshot(&commit).display()
        )
    })
}

/// The names of the models that the cache has in any part, in order.
pub fn cached(settings: &Settings) -> Vec<String> {
    let entries = std::fs::read_dir(&settings.cache).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| repository(entry.file_name().to_str()?)).collect();
    names.sort();
    names
}

/// `OWNER/NAME` of `models--OWNER--NAME`.
fn repository(folder: &str) -> Option<String> {
    let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
    Some(format!("{owner}/{name}")).filter(|name| Name::parse(name).is_ok())
}

fn found(snapshot: &Path, name: &Name, listed: &[Listed]) -> Result<PathBuf> {
    match choose(name, listed)? {
        Choice::Gguf(files) => first(snapshot, &files),
        Choice::Tensors => {
            let index = snapshot.join(INDEX);
            let index = index.exists().then(|| files::read_json(&index)).transpose()?;
            weights(name, listed, index.as_ref())?;
            Ok(snapshot.to_owned())
        }
    }
}

fn first(snapshot: &Path, files: &[String]) -> Result<PathBuf> {
    Ok(snapshot.join(files.first().context("a model has a file at least")?))
}

/// Gets what is needed of a model into the cache, as far as it is not there; `tell` hears how it goes on.
///
/// # Errors
/// A model that is not there or not given to this user, files that do not come or are not right, a disk that is too small.
pub fn pull(settings: &Settings, name: &Name, tell: &(dyn Fn(Event<'_>) + Sync)) -> Result<Pulled> {
    ensure!(!settings.offline, "HF_HUB_OFFLINE is set, so that nothing is fetched: unset it to pull {name}");
    let client = Client::new(settings);
    let (commit, listed) = persistent(|| client.list(name)).with_context(|| format!("cannot pull {name}"))?;
    let store = Store::of(&settings.cache, name.repository());
    let stop = AtomicBool::new(false);
    let work = Pull {
        source: Source { client: &client, store: &store, model: name, commit: &commit, stop: &stop },
        listed: &listed,
    };
    let snapshot = store.snapshot(&commit);
    let choice = choose(name, &listed)?;
    let (path, small, large) = match &choice {
        Choice::Gguf(files) => (first(&snapshot, files)?, Vec::new(), files.clone()),
        Choice::Tensors => {
            let small = work.wanted(beside(&listed).map(|file| file.name.as_str()))?;
            work.fetch(&settings.cache, &small, &|_| {})?;
            let index = snapshot.join(INDEX);
            let has_index = small.iter().any(|file| file.name == INDEX);
            let index = has_index.then(|| files::read_json(&index)).transpose()?;
            (snapshot.clone(), small, weights(name, &listed, index.as_ref())?)
        }
    };
    let large = work.wanted(large.iter().map(String::as_str))?;
    let sizes: Vec<(String, u64)> = large.iter().map(|file| (file.name.clone(), file.size)).collect();
    tell(Event::Files(&sizes));
    let fetched = work.fetch(&settings.cache, &large, tell)?;
    store.point(name.revision(), &commit)?;
    let all = small.iter().chain(&large);
    let bytes = all.clone().map(|file| file.size).sum();
    Ok(Pulled { path, files: all.count(), bytes, fetched, commit: commit.clone() })
}

struct Pull<'a> {
    source: Source<'a>,
    listed: &'a [Listed],
}

impl Pull<'_> {
    /// Size and checksum of files: those of the list, else what the hub says of each.
    fn wanted<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Vec<Wanted>> {
        let Source { client, model, commit, .. } = self.source;
        let wanted = |name: &str| {
            let listed = self.listed.iter().find(|file| file.name == name);
            let known = listed.and_then(|file| Some((file.checksum.clone()?, file.size?)));
            let (checksum, size) = match known {
                Some(known) => known,
                None => {
                    let head = persistent(|| client.head(model, commit, name))?;
                    ensure!(is_checksum(&head.checksum), "{model}: {name}: the server tells no checksum of it");
                    let size = head.size.with_context(|| format!("{model}: {name}: the server tells no size of it"))?;
                    (head.checksum, size)
                }
            };
            Ok(Wanted { name: name.to_owned(), checksum, size })
        };
        names.map(wanted).collect()
    }

    /// Fetches files side by side, the largest first, and links each into its commit. The bytes that came over the network.
    fn fetch(&self, cache: &Path, files: &[Wanted], tell: &(dyn Fn(Event<'_>) + Sync)) -> Result<u64> {
        let Source { store, commit, stop, .. } = self.source;
        let missing = |file: &&Wanted| !store.blob(&file.checksum).exists();
        let there = |file: &Wanted| std::fs::metadata(store.incomplete(&file.checksum)).map_or(0, |there| there.len());
        let bytes = files.iter().filter(missing).map(|file| file.size.saturating_sub(there(file))).sum();
        check_space(cache, bytes)?;
        let mut order: Vec<(usize, &Wanted)> = files.iter().enumerate().collect();
        order.sort_by_key(|(_, file)| std::cmp::Reverse(file.size));
        let came = AtomicU64::new(0);
        // A file that fails stops the others, which then fail too: the first is the reason.
        let reason: Mutex<Option<Error>> = Mutex::new(None);
        let done = threads::for_each(
            SIDE_BY_SIDE.min(files.len()),
            order,
            || (),
            |(), (index, file)| {
                let fetched = self.source.fetch(file, &|bytes| tell(Event::At(index, bytes)));
                let linked = fetched.and_then(|bytes| {
                    came.fetch_add(bytes, Ordering::Relaxed);
                    store.link(commit, &file.name, &file.checksum)
                });
                linked.map(|()| tell(Event::Done(index))).map_err(|error| {
                    stop.store(true, Ordering::Relaxed);
                    reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                })
            },
        );
        match (done, reason.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Ok(()), None) => Ok(came.into_inner()),
            (_, reason) => Err(reason.unwrap_or_else(|| anyhow!("a file was not fetched"))),
        }
    }
}

/// Asks a few times where a failure may pass.
fn persistent<T>(ask: impl Fn() -> Result<T, Failure>) -> Result<T> {
    let mut waits = WAITS.iter();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(why, wait)) => match waits.next() {
                Some(pause) => sleep(wait.unwrap_or(*pause)),
                None => bail!("{why}: look at the network, HTTPS_PROXY and HF_ENDPOINT, or try again later"),
            },
        }
    }
}

/// Refuses to fill a disk.
fn check_space(cache: &Path, bytes: u64) -> Result<()> {
    let Some(free) = crate::cache::free(cache) else { return Ok(()) };
    ensure!(
        bytes == 0 || free >= bytes.saturating_add(SPARE),
        "{:.1} GB are to be fetched, and where {} is, {:.1} GB are free: make room, or let HF_HUB_CACHE or HF_HOME name another folder",
        bytes as f64 / 1e9,
        cache.display(),
        free as f64 / 1e9
    );
    Ok(())
}
