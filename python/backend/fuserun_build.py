"""Builds the wheel with maturin; says in one line what is missing before that fails."""

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from maturin import build_editable as _build_editable
from maturin import build_sdist as _build_sdist
from maturin import build_wheel as _build_wheel
from maturin import prepare_metadata_for_build_wheel as _prepare_metadata

# As rust-version in Cargo.toml.
OLDEST = (1, 89)
# What the crates include from outside their folders, and the licences.
INCLUDED = ("models/*.toml", "models/demo/*.json", "models/demo/*.safetensors", "tuning/*.toml", "docs/description.md", "LICENSE-*")


def _check():
    if shutil.which("cargo") is None:
        raise SystemExit("fuserun is built with Rust, and there is no cargo on PATH: install it from https://rustup.rs and try again")
    said = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    if version and tuple(map(int, version.groups())) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise SystemExit(f"fuserun is built with Rust {wanted} or later, and this is {said.strip()}: `rustup update` gets it")


def get_requires_for_build_wheel(config_settings=None):
    _check()
    return []


def get_requires_for_build_editable(config_settings=None):
    _check()
    return []


def get_requires_for_build_sdist(config_settings=None):
    _check()
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    _check()
    return _prepare_metadata(metadata_directory, config_settings)


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _check()
    return _build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _check()
    return _build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    _check()
    name = _build_sdist(sdist_directory, config_settings)
    _add_included(Path(sdist_directory) / name)
    return name


def _add_included(path):
    """Puts what the crates include from outside their folders into a source distribution, which maturin leaves out."""
    project = Path(__file__).resolve().parents[1]
    root = project if (project / "models").is_dir() else project.parent
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        with tarfile.open(path) as old, tarfile.open(whole, "w:gz") as new:
            top = old.getnames()[0].split("/")[0]
            there = set()
            for member in old:
                there.add(member.name)
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
            for pattern in INCLUDED:
                files = sorted(root.glob(pattern))
                if not files:
                    raise SystemExit(f"{root} has no {pattern}, which the crates include")
                for file in files:
                    name = f"{top}/{file.relative_to(root)}"
                    if name not in there:
                        new.add(file, name, filter=_of_nobody)
        os.replace(whole, path)


def _of_nobody(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
