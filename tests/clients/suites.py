"""Suites that others wrote, against the demo model, with what is left out of each and why."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "clients"

# Of llm-comply. Models here read text only, the demo does not think, and nothing is kept that could be made compact. A request without `model`, for which the error
# cases want an error, is answered: clients of servers with one model leave it out, llama.cpp's tests among them. The arguments of the demo's call, texts of any length,
# do not end before the context does; those of the other checks have an end.
LEFT_OUT_OF_COMPLY = {
    "openai-chat": ["chat-image-input", "chat-reasoning-summary", "chat-error-handling", "chat-tool-calling"],
    "open-responses": ["image-input", "reasoning-summary", "compact-response", "compact-missing-model", "error-handling"],
    "anthropic": ["anth-image-input", "anth-thinking-display"],
}


def llm_comply(server, key):
    program = Path(sys.prefix) / "bin" / "llm-comply"
    passed = 0
    for form, left_out in LEFT_OUT_OF_COMPLY.items():
        base = [program, "--format", form, "-u", server.base + "/v1", "-k", key, "-m", "demo", "--timeout", "300"]
        listed = subprocess.run([program, "--format", form, "--list"], capture_output=True, text=True, check=True).stdout
        ids = re.findall(r"^  ([a-z]+(?:-[a-z]+)+) ", listed, re.MULTILINE)
        assert set(left_out) <= set(ids), (form, ids)
        ids = [name for name in ids if name not in left_out]
        done = subprocess.run([*base, "-f", ",".join(ids)], capture_output=True, text=True)
        assert done.returncode == 0, f"{form}:\n{done.stdout}{done.stderr}"
        passed += len(ids)
    return f"{passed} cases pass; left out: {', '.join(name for names in LEFT_OUT_OF_COMPLY.values() for name in names)}"


def compatcanary(server, key):
    if not shutil.which("npx"):
        raise RuntimeError("there is no npx: install Node.js 20")
    for profile in ["chat", "modern"]:
        scan = ["npx", "--yes", "compatcanary@0.2.2", "scan", "--base-url", server.base + "/v1", "--model", "demo"]
        scan += ["--profile", profile, "--timeout", "300", "--fail-on", "any"]
        env = {**os.environ, "OPENAI_API_KEY": key, "npm_config_cache": str(FOLDER / "npm")}
        done = subprocess.run(scan, capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{profile}:\n{done.stdout}{done.stderr}"


# llama.cpp's own tests of its server come within the source of this package.
LLAMA = "llama-cpp-python==0.3.36"
# The others are of routes and features that only their server has; `template` gives it templates as flags, `completion` asks /completion.
FILES = ["basic", "chat_completion", "security", "tokenize", "compat_anthropic", "compat_oai_responses"]
LEFT_OUT_OF_LLAMA = json.loads((Path(__file__).parent / "llama-left-out.json").read_text())


def llama_cpp(_server, _key):
    folder = fetched()
    # Theirs fetches models.
    (folder / "conftest.py").write_text(CONFTEST)
    known = {test for tests in LEFT_OUT_OF_LLAMA.values() for test in tests}
    env = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(Path(__file__).parent / "llama_server.py")}
    env |= {"FUSERUN": str(ROOT / "target/debug/fuserun"), "PORT": "18080"}
    report = folder / "report.txt"
    names = [f"unit/test_{name}.py" for name in FILES]
    run = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider", *names]
    done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True)
    report.write_text(done.stdout + done.stderr)
    told = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) unit/test_(\S+?)\.py::(\w+)", done.stdout, re.MULTILINE)
    passed = {f"{file}::{test}" for state, file, test in told if state == "PASSED"}
    failed = {f"{file}::{test}" for state, file, test in told if state in ("FAILED", "ERROR")}
    assert passed or failed, done.stdout + done.stderr
    wrong = sorted(failed - known)
    assert not wrong, f"{report}: these fail, and are not left out: {wrong}"
    # What depends on draws may pass; what no draw decides and passes is to be taken from the list.
    idle = sorted(known - failed)
    return f"{len(passed - failed)} tests pass, {len(known)} are left out ({report.relative_to(ROOT)}); of these passed: {idle}"


def fetched():
    folder = FOLDER / "llama"
    if not (folder / "fetched.txt").exists():
        download = FOLDER / "download"
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "-d", download, LLAMA]
        subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, capture_output=True)
        subprocess.run(fetch, check=True)
        source = next(download.glob("*.tar.gz"))
        part = "/vendor/llama.cpp/tools/server/tests/"
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                if part in member.name and member.isfile():
                    member.name = member.name.split(part)[1]
                    archive.extract(member, folder, filter="data")
        shutil.rmtree(download)
        (folder / "fetched.txt").write_text(LLAMA)
    return folder


CONFTEST = """
import pytest
from utils import server_instances


@pytest.fixture(autouse=True)
def stop_server_after_each_test():
    yield
    for server in set(server_instances):
        server.stop()
"""

CHECKS = {"llm-comply": llm_comply, "compatcanary": compatcanary, "llama.cpp": llama_cpp}
