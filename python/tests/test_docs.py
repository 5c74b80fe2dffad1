"""docs/python.md is what the docstrings say, and shows what runs."""

import re
import subprocess
import sys

from conftest import ROOT

import fuserun


def test_the_reference_is_made_of_the_docstrings():
    done = subprocess.run([sys.executable, ROOT / "python/document", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_is_in_the_reference():
    page = (ROOT / "docs/python.md").read_text()
    names = [name for name in fuserun.__all__ if not name.startswith("_")]
    assert [name for name in names if f"\n### {name}\n" not in page] == []


def test_the_first_example_of_the_page_runs(run):
    page = (ROOT / "docs/python.md").read_text()
    program = re.search("```python\n(.*?)```", page, re.S).group(1)
    done = run(program, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout == ", I say, I have no doubt; but I have\n", done.stderr
    assert "no NVIDIA GPU found: running on the CPU" in done.stderr
    assert fuserun.__doc__.count(", I say") == 1


def test_the_scripts_of_the_page_are_there():
    page = (ROOT / "docs/python.md").read_text().partition("## Examples")[2]
    named = set(re.findall(r"`(\w+\.py)`", page.partition("## Reference")[0]))
    assert named == {path.name for path in (ROOT / "python/examples").glob("*.py")}
