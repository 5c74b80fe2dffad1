"""The example scripts, as a user runs them, with the demo model."""

import json
import os
import subprocess
import sys

from conftest import ROOT

EXAMPLES = ROOT / "python/examples"


def run(script, *arguments):
    # On any machine the same: tools and schemas need the CPU so far.
    env = {**os.environ, "FUSE_DEVICE": "cpu"}
    done = subprocess.run([sys.executable, EXAMPLES / script, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return done


def test_a_batch_goes_over_a_file_with_a_bar(tmp_path, llm):
    from fuserun import SamplingParams

    prompts = ["Call me", "The whale", "", "Ahab said"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    done = run("batch.py", tmp_path / "prompts.txt", tmp_path / "answers.jsonl", "--device", "cpu", "--max-tokens", 5)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    prompts.remove("")
    expected = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)
    assert [(answer["prompt"], answer["text"], answer["tokens"]) for answer in answers] == [(prompt, output.text, 5) for prompt, output in zip(prompts, expected)]
    assert "Answering: 100%" in done.stderr and "3/3" in done.stderr


def test_facts_are_taken_as_json_of_a_schema():
    done = run("extract.py", "Herman Melville wrote Moby-Dick in 1851.", "Homer sang the Odyssey.")
    books = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(books) == 2
    for book in books:
        assert set(book) == {"title", "author", "year", "kind"} and 1450 <= book["year"] <= 2100 and book["kind"] in ("novel", "poetry", "drama", "other")


def test_an_agent_calls_a_tool_and_answers():
    done = run("agent.py", "What is 17 times 23?", "--device", "cpu", "--first", "required", "--steps", 2)
    call, *answer = done.stdout.splitlines()
    assert call.startswith(("calculate({", "today({")) and ") = " in call, done.stdout
    assert "\n".join(answer).strip(), "it answers after that"


def test_a_tool_that_fails_is_told_to_the_model():
    sys.path.insert(0, str(EXAMPLES))
    import agent

    assert agent.call({"name": "calculate", "arguments": '{"expression": "17 * 23"}'}) == "391"
    assert agent.call({"name": "calculate", "arguments": '{"expression": "open()"}'}) == "error: only numbers and + - * / are understood"
    assert agent.call({"name": "calculate", "arguments": "{"}).startswith("error: ")


def test_the_cells_of_a_notebook_show_texts_as_they_come():
    lines = run("notebook.py").stdout.splitlines()
    assert lines[0].startswith(", I say, I have no doubt; but I have")
    assert sum(line.startswith("'") for line in lines) == 6 and sum(line.split(":")[0] in ("Ahab", "Starbuck", "Queequeg") for line in lines) == 3
