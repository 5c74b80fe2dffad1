//! Where results go: into a file that is replaced whole, or into a device, a pipe or a descriptor as it stands.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// Links that lead from one to the next, at most: what Linux follows.
const MOST_LINKS: usize = 40;

/// Writes `bytes` to what `path` names: `-` is stdout, a device, a pipe and a descriptor of this process are written to where they are, a link
/// leads to what it names. A regular file is replaced at once and keeps its permissions: a reader never sees half of it, and a failure leaves what
/// was there. A file that is not there gets the permissions that the umask leaves.
///
/// A file that can be written in a folder that takes no other (a mount of that file only, a folder of someone else's) is written in place.
///
/// # Errors
/// When it cannot be written: the message names it and the reason.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = target(path).and_then(|target| match target {
        Target::File(file) => replace(&file, bytes),
        stream => pour(&stream, bytes),
    });
    written.with_context(|| format!("cannot write {}", name(path)))
}

/// As [`write()`], but a regular file that is there is not touched.
///
/// # Errors
/// As [`write()`], and where there is a file.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = target(path).and_then(|target| match target {
        Target::File(file) => {
            beside(&file, bytes)?.persist_noclobber(file)?;
            Ok(())
        }
        stream => pour(&stream, bytes),
    });
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow!("{} is there already: name another file, or remove it", name(path)),
        _ => anyhow!(error).context(format!("cannot write {}", name(path))),
    })
}

/// Whether `path` is no file that is replaced, so that what is written comes after what was written before.
pub fn is_stream(path: &Path) -> bool {
    target(path).is_ok_and(|target| !matches!(target, Target::File(_)))
}

/// What messages call it.
pub fn name(path: &Path) -> String {
    if is_dash(path) { "stdout".into() } else { path.display().to_string() }
}

/// What a path leads to.
enum Target {
    Stdout,
    Stderr,
    /// What is written to where it is; an open file of a process, at its end.
    Stream {
        path: PathBuf,
        at_end: bool,
    },
    /// A regular file, or a name that nothing has yet.
    File(PathBuf),
}

fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}

/// Follows links by hand, since the file that the last one names may be yet to be made.
fn target(path: &Path) -> io::Result<Target> {
    if is_dash(path) {
        return Ok(Target::Stdout);
    }
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it names a folder: name a file in it"));
    }
    let mut path = path.to_path_buf();
    for _ in 0..=MOST_LINKS {
        let kind = match fs::symlink_metadata(&path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Target::File(path)),
            Err(error) => return Err(error),
        };
        if kind.is_file() {
            return Ok(Target::File(path));
        }
        if kind.is_dir() {
            return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder: name a file in it"));
        }
        if !kind.is_symlink() {
            return Ok(Target::Stream { path, at_end: false });
        }
        let folder = folder_of(&path).canonicalize()?;
        // What Linux has for the open files of a process looks like links, and is not to be followed by name: the file may be gone, or open
        // for appending.
        if folder.starts_with("/proc") {
            let own = fs::canonicalize("/proc/self/fd").is_ok_and(|own| own == folder);
            return Ok(match path.file_name().and_then(|name| name.to_str()) {
                Some("1") if own => Target::Stdout,
                Some("2") if own => Target::Stderr,
                _ => Target::Stream { path, at_end: true },
            });
        }
        path = folder.join(fs::read_link(&path)?);
    }
    Err(io::Error::other("symbolic links lead from one to the next without an end"))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn pour(target: &Target, bytes: &[u8]) -> io::Result<()> {
    let all = |into: &mut dyn Write| into.write_all(bytes).and_then(|()| into.flush());
    match target {
        // A reader that has gone away wants no more, which is no failure.
        Target::Stdout => match all(&mut io::stdout().lock()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            done => done,
        },
        Target::Stderr => all(&mut io::stderr().lock()),
        Target::Stream { path, at_end } => all(&mut OpenOptions::new().write(true).append(*at_end).open(path)?),
        Target::File(path) => replace(path, bytes),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Opened for writing, so that one which may not be written is not replaced either.
    let mut there = match OpenOptions::new().write(true).open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let replaced = beside(path, bytes).and_then(|partial| {
        if let Some(there) = &there {
            keep_access(partial.as_file(), there)?;
        }
        partial.persist(path)?;
        Ok(())
    });
    match (replaced, &mut there) {
        (Err(error), Some(file)) if takes_no_other(&error) => file.set_len(0).and_then(|()| file.write_all(bytes)),
        (replaced, _) => replaced,
    }
}

/// A file of another name with these contents in the folder of `path`; removed where it is not renamed.
fn beside(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile<File>> {
    let folder = folder_of(path);
    if !folder.exists() {
        return Err(io::Error::new(ErrorKind::NotFound, format!("there is no folder {}", folder.display())));
    }
    within_limit(bytes.len())?;
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    let mut partial = tempfile::Builder::new().prefix(".partial-").make_in(folder, create)?;
    partial.as_file_mut().write_all(bytes)?;
    Ok(partial)
}

/// A folder that takes no file beside one that is there, or that does not let it be replaced.
fn takes_no_other(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy)
}

/// Gives a file the permissions of the one that it replaces, and its owner where that is allowed.
fn keep_access(file: &File, there: &File) -> io::Result<()> {
    let there = there.metadata()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let _ = fchown(file, Some(there.uid()), Some(there.gid()));
    }
    file.set_permissions(there.permissions())
}

/// Refuses what is beyond the process's limit on files: writing it would end the process with a part written.
fn within_limit(bytes: usize) -> io::Result<()> {
    #[cfg(unix)]
    if rustix::process::getrlimit(rustix::process::Resource::Fsize).current.is_some_and(|most| bytes as u64 > most) {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("{bytes} bytes are beyond the limit of ulimit -f"),
        ));
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn message(path: &Path) -> String {
        format!("{:#}", write(path, b"x").unwrap_err())
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_permissions() {
        let folder = scratch();
        let (path, other) = (folder.path().join("out"), folder.path().join("other"));
        for bits in [0o600, 0o644, 0o755] {
            fs::write(&path, "a longer text that was there").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            let before = File::open(&path).unwrap();
            write(&path, b"short").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"short");
            assert_eq!(mode(&path), bits);
            assert_eq!(io::read_to_string(before).unwrap(), "a longer text that was there", "replaced, not rewritten");
        }
        // Whatever the umask is, another program's file has what a new one of ours has.
        fs::write(&other, "").unwrap();
        fs::remove_file(&path).unwrap();
        write(&path, b"").unwrap();
        assert_eq!(mode(&path), mode(&other));
        assert_eq!(names(folder.path()), ["other", "out"]);
    }

    #[test]
    fn links_lead_to_what_they_name() {
        let folder = scratch();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/file"), "old").unwrap();
        symlink("below/file", at("link")).unwrap();
        symlink("link", at("link-of-link")).unwrap();
        symlink("below", at("folder")).unwrap();
        symlink("../new", at("below/dangling")).unwrap();
        write(&at("link-of-link"), b"1").unwrap();
        assert_eq!(fs::read(at("below/file")).unwrap(), b"1");
        write(&at("folder/dangling"), b"2").unwrap();
        assert_eq!(fs::read(at("new")).unwrap(), b"2");
        assert!(["link", "link-of-link", "below/dangling"].iter().all(|name| at(name).is_symlink()));
        symlink("round", at("round")).unwrap();
        assert!(message(&at("round")).ends_with("links lead from one to the next without an end"));
        assert_eq!(names(&at("below")), ["dangling", "file"]);
    }

    #[test]
    fn devices_are_written_to() {
        write(Path::new("/dev/null"), b"x").unwrap();
        write_new(Path::new("/dev/null"), b"x").unwrap();
        assert!(is_stream(Path::new("/dev/null")) && is_stream(Path::new("-")) && !is_stream(Path::new("file")));
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
        assert_eq!(message(Path::new("/dev/full")), "cannot write /dev/full: No space left on device (os error 28)");
    }

    #[test]
    fn an_open_file_is_written_to_at_its_end() {
        use std::os::fd::AsRawFd;
        let folder = scratch();
        let path = folder.path().join("gone");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"first ").unwrap();
        fs::remove_file(&path).unwrap();
        write(&PathBuf::from(format!("/dev/fd/{}", file.as_raw_fd())), b"second").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "first second");
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let folder = scratch();
        let path = folder.path().join("out");
        write_new(&path, b"1").unwrap();
        let error = format!("{:#}", write_new(&path, b"2").unwrap_err());
        assert_eq!(error, format!("{} is there already: name another file, or remove it", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"1");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn what_cannot_be_written_is_named_with_the_reason() {
        let folder = scratch();
        let at = |name: &str| folder.path().join(name);
        let missing = at("none/out");
        assert_eq!(
            message(&missing),
            format!("cannot write {}: there is no folder {}", missing.display(), at("none").display())
        );
        assert!(message(folder.path()).ends_with("it is a folder: name a file in it"));
        assert!(message(&at("out/")).ends_with("it names a folder: name a file in it"));
        symlink("none/out", at("dangling")).unwrap();
        assert!(message(&at("dangling")).contains("there is no folder"));
        assert_eq!(names(folder.path()), ["dangling"]);
    }
}
