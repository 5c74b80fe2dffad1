"""The module `nanovllm`: the calls of nano-vllm's scripts, smaller and on the CPU."""

import random
import subprocess
import sys

import pytest
from conftest import ROOT

from nanovllm import LLM, SamplingParams
from nanovllm.llm import LLM as SameLLM
from nanovllm.sampling_params import SamplingParams as SameParams

DEMO = ROOT / "models/demo"
EXAMPLES = ROOT / "python/examples"


@pytest.fixture(scope="module")
def nano():
    with LLM(str(DEMO), enforce_eager=True, tensor_parallel_size=1, max_model_len=4096, max_num_seqs=512, gpu_memory_utilization=0.9, device="cpu") as llm:
        yield llm


def test_what_nano_vllm_takes_is_cut_to_what_there_is(nano):
    assert SameLLM is LLM and SameParams is SamplingParams
    assert nano.max_num_seqs == 4 and nano.max_model_len == 1024
    assert (SamplingParams(0.6, 8, True).temperature, SamplingParams(0.6, 8, True).max_tokens, SamplingParams(0.6, 8, True).ignore_eos) == (0.6, 8, True)
    assert (SamplingParams().temperature, SamplingParams().max_tokens, SamplingParams().ignore_eos) == (1.0, 64, False)


def test_the_calls_of_its_benchmark(nano, capfd):
    draw = random.Random(0)
    prompts = [[draw.randint(0, 4000) for _ in range(draw.randint(3, 20))] for _ in range(10)]
    params = [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=draw.randint(2, 9)) for _ in range(10)]
    nano.generate(["Benchmark: "], SamplingParams(max_tokens=2))
    outputs = nano.generate(prompts, params, use_tqdm=False)
    assert [len(output["token_ids"]) for output in outputs] == [param.max_tokens for param in params]
    assert all(set(output) == {"text", "token_ids"} for output in outputs)
    assert "Generating: 100%" in capfd.readouterr().err, "the first one has a bar"


def test_the_times_to_first_tokens_are_those_of_the_last_call(nano):
    outputs = nano.generate([[5] * 3] * 6, SamplingParams(ignore_eos=True, max_tokens=4), use_tqdm=False)
    times = [output.metrics.prompt_ms / 1000 for output in outputs]
    stats = nano.last_ttft_stats
    assert set(stats) == {"avg", "min", "max"}
    assert (stats["min"], stats["max"]) == (min(times), max(times)) and stats["avg"] == pytest.approx(sum(times) / 6)
    assert 0 < stats["min"] < stats["max"], "six prompts and four slots: two wait"
    assert nano.generate([], SamplingParams(), use_tqdm=False) == [] and nano.last_ttft_stats is None


def test_its_engine_goes_step_by_step(nano):
    greedy = SamplingParams(temperature=0, max_tokens=4)
    expected = nano.generate(["Call me"], greedy, use_tqdm=False)[0]["token_ids"]
    nano.add_request("Call me", greedy)
    outputs, counts = [], []
    while not nano.is_finished():
        ended, count = nano.step()
        outputs += ended
        counts.append(count)
    assert [tokens for _, tokens in outputs] == [expected]
    assert [count for count in counts if count] == [len(nano.encode("Call me")), -1, -1, -1], "the prompt with its first token, then a token per step"


def test_special_tokens_stay_in_the_text_and_the_end_in_the_tokens(smollm2):
    with LLM(smollm2, device="cpu", max_num_seqs=1) as llm:
        prompt = llm.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True)
        [output] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
        ends = llm.tokenizer.eos_token_ids
    assert output["text"] == "The capital of France is Paris.<|im_end|>"
    assert output["token_ids"][-1] in ends and output.outputs[0].finish_reason == "stop"


DIFFERENCES = [
    (dict(tensor_parallel_size=2), ValueError, "tensor_parallel_size is 2: a model runs on one GPU"),
    (dict(max_modle_len=4), TypeError, "LLM takes no argument 'max_modle_len'; is it max_model_len?"),
]


@pytest.mark.parametrize("arguments, error, said", DIFFERENCES, ids=["tensor_parallel_size", "max_modle_len"])
def test_what_it_would_leave_out_is_an_error(arguments, error, said):
    with pytest.raises(error, match=said.replace("?", "[?]")):
        LLM(str(DEMO), device="cpu", **arguments)


def test_lengths_that_differ_are_an_error(nano):
    with pytest.raises(ValueError, match="2 prompts and 1 sampling params"):
        nano.generate(["a", "b"], [SamplingParams()])


def run(script, *arguments):
    return subprocess.run([sys.executable, EXAMPLES / script, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_the_script_that_measures(nano):
    sizes = ["--prompts", 6, "--shortest", 2, "--longest-prompt", 12, "--longest-answer", 6, "--largest-token", 4000, "--max-model-len", 256]
    done = run("bench_nanovllm.py", DEMO, "--device", "cpu", *sizes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu, 4 slots: ") and " tokens written in " in done.stdout and done.stdout.endswith(" tok/s\n")


def test_the_benchmark_has_the_lengths_of_nano_vllms():
    draw = random.Random(0)
    prompts = [[draw.randint(0, 10000) for _ in range(draw.randint(100, 1024))] for _ in range(256)]
    assert (sum(map(len, prompts)), sum(draw.randint(100, 1024) for _ in range(256))) == (142_827, 133_966)


def test_the_script_with_a_chat_template(smollm2):
    done = run("nanovllm_example.py", smollm2, "--max-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Prompt: '<|im_start|>") == 2 and done.stdout.count("Completion: ") == 2
