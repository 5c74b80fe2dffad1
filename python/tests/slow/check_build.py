"""The source distribution builds in a fresh environment with nothing of the repository beside it. Minutes: it is a release build."""

import os
import subprocess
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def call(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment():
    """The environment without what the other tests have."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CARGO_TARGET_DIR")}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory, python, environment):
    folder = tmp_path_factory.mktemp("sdist")
    call(python, "-m", "pip", "install", "--quiet", "build", env=environment)
    call(python, "-m", "build", "--sdist", "--outdir", folder, ROOT / "python", env=environment)
    [path] = folder.glob("*.tar.gz")
    return path


def test_it_has_what_the_crates_include_and_nothing_of_this_machine(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = ["Cargo.lock", "models/llama.toml", "models/demo/model.safetensors", "tuning/sm_90a.toml", "docs/description.md", "LICENSE-MIT"]
    needed += ["fuserun/py.typed", "fuserun/_native.pyi", "backend/fuserun_build.py", "python/src/lib.rs", "runtime/src/lib.rs"]
    assert set(needed) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".cache", "target"))]


def test_it_builds_and_runs_in_a_fresh_environment(sdist, python, environment, tmp_path):
    call(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, sdist, env=environment, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name, "one wheel for 3.10 and later"
    assert wheel.stat().st_size < 40_000_000
    call(python, "-m", "pip", "install", "--quiet", "--no-index", wheel, env=environment)
    program = "import fuserun; print(fuserun.LLM(device='cpu').generate('Call me', fuserun.SamplingParams(0, 4), use_tqdm=False)[0]['text'])"
    assert call(python, "-c", program, cwd=tmp_path, env=environment) == ", I say,\n"
    # Nothing is needed beside it.
    assert "\nRequires: \n" in call(python, "-m", "pip", "show", "fuserun", env=environment)


def test_without_rust_a_line_says_what_to_do(python, environment, tmp_path):
    done = subprocess.run(
        [python, "-m", "pip", "install", ROOT / "python"], capture_output=True, text=True, cwd=tmp_path, env=environment | {"PATH": str(python.parent)}
    )
    line = "fuserun is built with Rust, and there is no cargo on PATH: install it from https://rustup.rs and try again"
    assert done.returncode != 0 and line in done.stderr + done.stdout, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
