"""What the tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_terminal_summary(terminalreporter):
    """The line that tests/run counts."""
    count = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    terminalreporter.write_line("test result: {passed} passed; {0} failed; {skipped} ignored".format(count["failed"] + count["error"], **count))


@pytest.fixture(scope="session")
def llm():
    """The demo model on the CPU, with two slots."""
    import fuserun

    with fuserun.LLM(device="cpu", max_num_seqs=2, threads=2) as llm:
        yield llm


@pytest.fixture(scope="session")
def smollm2():
    """The path of SmolLM2-135M-Instruct, whose template knows tools."""
    done = subprocess.run([sys.executable, ROOT / "tests/fetch"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def run():
    """Runs a program of Python in a process of its own; without a GPU unless its environment says otherwise."""

    def run(program, *arguments, env=None, **options):
        command = [sys.executable, *(["-c", program] if isinstance(program, str) else [program]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}, **options)

    return run
