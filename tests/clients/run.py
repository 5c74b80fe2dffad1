#!/usr/bin/env python3
"""The server, asked by the clients that people use and by the suites that others wrote: `tests/run clients`, or `tests/clients/run.py NAME...`.

What it needs of PyPI and npm is fetched into .cache/clients, and never committed. The model is the demo, which is in the program: texts say nothing,
structures are checked.
"""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "clients"
VENV = FOLDER / "venv"
KEY = "sesame"


def prepare():
    """Runs again within a virtual environment that has the packages."""
    python = VENV / "bin" / "python"
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    wanted = (Path(__file__).parent / "requirements.txt").read_text()
    done = VENV / "fetched.txt"
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        # pip tries versions of these for minutes.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        packages = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        subprocess.run([VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", python, *packages], check=True)
        done.write_text(wanted)
    os.execv(python, [python, __file__, *sys.argv[1:]])


class Server:
    """A server with the demo model on the CPU, at a port that is free."""

    def __init__(self, *arguments):
        program = [ROOT / "target/debug/fuserun", "serve", "--device", "cpu", "--port", "0", "--slots", "4", "--threads", "1", *arguments]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("FUSE_", "HF_"))}
        self.process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=env)
        said = ""
        while "ready\n" not in said:
            line = self.process.stderr.readline()
            if not line:
                sys.exit(f"clients: the server ended: {said}")
            said += line
        self.address = said.split("http://")[1].split(",")[0]
        self.base = f"http://{self.address}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def main():
    import libraries
    import suites

    checks = {**libraries.CHECKS, **suites.CHECKS}
    names = sys.argv[1:] or list(checks)
    for name in names:
        if name not in checks:
            sys.exit(f"clients: there is no {name}; give some of {' '.join(checks)}")
    subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bin", "fuserun"], cwd=ROOT, check=True)
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            with Server("--api-key", KEY) as server:
                told = checks[name](server, KEY)
            print(f"clients: {name}: {told or 'all of it holds'} ({time.monotonic() - began:.0f} s)", flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            print(f"clients: {name} FAILED", flush=True)
    if failed:
        sys.exit(f"clients: failed: {' '.join(failed)}")


if __name__ == "__main__":
    prepare()
    main()
