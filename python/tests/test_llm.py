"""`fuserun.LLM` on the CPU, with the demo model."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

import fuserun
from fuserun import LLM, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)
CALL_ME = ", I say, I have no doubt; but I have"


def test_results_read_as_dicts_and_as_objects(llm):
    [output] = llm.generate("Call me", GREEDY, use_tqdm=False)
    assert isinstance(output, RequestOutput) and isinstance(output, dict)
    assert output["text"] == output.text == output.outputs[0].text == CALL_ME
    assert output["token_ids"] == output.token_ids == output.outputs[0].token_ids and len(output["token_ids"]) == 12
    assert json.loads(json.dumps(output)) == {"text": output.text, "token_ids": output.token_ids}
    assert output.prompt == "Call me" and output.prompt_token_ids == llm.encode("Call me")
    assert output.finished and output.outputs[0].finish_reason == "length" and output.num_prompt_tokens == 3
    assert llm.decode(output.prompt_token_ids + output.token_ids) == "Call me" + CALL_ME
    assert output.metrics.prompt_ms > 0 and output.metrics.answer_ms > 0


def test_prompts_are_texts_tokens_or_either_in_a_dict(llm):
    ids = llm.encode("Call me")
    ways = ["Call me", ids, tuple(ids), {"prompt": "Call me"}, {"prompt_token_ids": ids}]
    assert [output.text for output in llm.generate(ways, GREEDY, use_tqdm=False)] == [CALL_ME] * len(ways)
    for way in ways[:2] + ways[3:]:
        assert llm.generate(way, GREEDY, use_tqdm=False)[0].text == CALL_ME
    assert llm.generate([], GREEDY) == []


def test_more_prompts_than_a_queue_holds_come_in_their_order(llm):
    params = [SamplingParams(temperature=0, max_tokens=1 + index % 3) for index in range(80)]
    prompts = [[index + 1] for index in range(80)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == [param.max_tokens for param in params]
    alone = [llm.generate(prompts[index], params[index], use_tqdm=False)[0].token_ids for index in (0, 1, 78)]
    assert alone == [outputs[index].token_ids for index in (0, 1, 78)]


def test_a_seed_fixes_the_draws_and_each_answer_has_its_own(llm):
    params = SamplingParams(max_tokens=8, n=3, seed=7)
    [first], [again] = (llm.generate("The whale", params, use_tqdm=False) for _ in range(2))
    texts = [answer.text for answer in first.outputs]
    assert texts == [answer.text for answer in again.outputs] and len(set(texts)) == 3 and first.seed == 7
    drawn = llm.generate("The whale", SamplingParams(max_tokens=8), use_tqdm=False)[0]
    repeated = llm.generate("The whale", SamplingParams(max_tokens=8, seed=drawn.seed), use_tqdm=False)[0]
    assert drawn.token_ids == repeated.token_ids


def test_stops_end_a_text_and_are_told(llm):
    [output] = llm.generate("Call me", SamplingParams(temperature=0, max_tokens=12, stop=["doubt", "never"]), use_tqdm=False)
    answer = output.outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (", I say, I have no ", "stop", "doubt")
    token = llm.generate("Call me", GREEDY, use_tqdm=False)[0].token_ids[4]
    params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[token])
    answer = llm.generate("Call me", params, use_tqdm=False)[0].outputs[0]
    assert answer.token_ids[-1] == token and answer.finish_reason == "stop" and CALL_ME.startswith(answer.text)
    assert len(answer.token_ids) < 12


def test_logprobs_are_of_each_token(llm):
    answer = llm.generate("Call me", SamplingParams(temperature=0, max_tokens=5, logprobs=3), use_tqdm=False)[0].outputs[0]
    assert len(answer.logprobs) == 5
    for token, scores in zip(answer.token_ids, answer.logprobs):
        assert len(scores) == 3 and scores[token].rank == 1 and scores[token].logprob == max(score.logprob for score in scores.values())
        assert scores[token].decoded_token == llm.decode(token)
    assert answer.cumulative_logprob == pytest.approx(sum(scores[token].logprob for token, scores in zip(answer.token_ids, answer.logprobs)))


def test_pieces_of_a_stream_are_the_text(llm):
    pieces = list(llm.stream("Call me", GREEDY))
    assert "".join(pieces) == CALL_ME and len(pieces) > 6
    assert sum((piece.token_ids for piece in pieces), []) == llm.generate("Call me", GREEDY, use_tqdm=False)[0].token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_to_leave_a_stream_gives_its_slot_back(llm):
    for _ in range(5):
        for piece in llm.stream("Call me", SamplingParams(max_tokens=None, ignore_eos=True)):
            break
    began = time.monotonic()
    llm.generate("Call me", SamplingParams(max_tokens=1), use_tqdm=False)
    assert time.monotonic() - began < 5, "texts of 1000 tokens would take longer"


def test_chats_go_through_the_template(llm):
    messages = [{"role": "user", "content": "Where is the whale?"}]
    text = llm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "Where is the whale?" in text and llm.tokenizer.apply_chat_template(messages) == llm.encode(
        llm.tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
    )
    [one] = llm.chat(messages, GREEDY, use_tqdm=False)
    two = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert one.text and [output.text for output in two] == [one.text] * 2
    assert "".join(llm.stream_chat(messages, GREEDY)) == one.text
    assert one.outputs[0].message == {"role": "assistant", "content": one.text}
    assert one.prompt == text and one.prompt_token_ids == llm.encode(text, add_special_tokens=False)
    assert one.num_prompt_tokens == len(one.prompt_token_ids)


def test_logits_are_a_buffer_that_ranks_the_greedy_token_first(llm):
    tokens = llm.encode("Call me")
    view = llm.logits("Call me")
    assert view.shape == (len(tokens), llm.tokenizer.vocab_size) and view.format == "f" and view.contiguous
    row = view.tolist()[-1]
    assert row.index(max(row)) == llm.generate("Call me", GREEDY, use_tqdm=False)[0].token_ids[0]


def test_steps_tell_what_has_ended(llm):
    alone = [output.token_ids for output in llm.generate(["Call me", "The whale"], GREEDY, use_tqdm=False)]
    assert llm.is_finished() and llm.step() == ([], 0)
    numbers = [llm.add_request(prompt, GREEDY) for prompt in ("Call me", "The whale")]
    ended, computed = {}, []
    while not llm.is_finished():
        outputs, count = llm.step()
        ended |= dict(outputs)
        computed.append(count)
    assert [ended[number] for number in numbers] == alone and len(set(numbers)) == 2
    assert sum(count for count in computed if count > 0) == 3 + len(llm.encode("The whale"))
    assert sum(count for count in computed if count < 0) == -2 * 11 and min(computed) >= -2


def test_the_interpreter_is_free_while_the_model_works(llm):
    counted, stop = 0, threading.Event()

    def count():
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before, began = counted, time.monotonic()
        llm.generate("Call me", SamplingParams(max_tokens=40, ignore_eos=True), use_tqdm=False)
        took, during = time.monotonic() - began, counted - before
    finally:
        stop.set()
        thread.join()
    assert during > took * 100, f"{during} turns of a millisecond in {took:.2f} s"


def test_threads_ask_at_the_same_time(llm):
    results = {}

    def ask(index):
        results[index] = llm.generate(["Call me"] * 2, GREEDY, use_tqdm=False)

    threads = [threading.Thread(target=ask, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index: [output.text for output in outputs] for index, outputs in results.items()} == {index: [CALL_ME] * 2 for index in range(4)}


INTERRUPTED = """
import sys, time
from fuserun import LLM, SamplingParams
llm = LLM(device="cpu", threads=1)
long = SamplingParams(max_tokens=None, ignore_eos=True)
try:
    print("go", flush=True)
    if sys.argv[1] == "generate":
        llm.generate(["Call me"] * 50, long, use_tqdm=False)
    elif sys.argv[1] == "stream":
        for piece in llm.stream("Call me", long): pass
    else:
        llm.add_request("Call me", long)
        while not llm.is_finished(): llm.step()
except KeyboardInterrupt:
    print(time.time(), flush=True)
    print(len(llm.generate("Call me", SamplingParams(max_tokens=2), use_tqdm=False)[0].token_ids), flush=True)
"""


@pytest.mark.parametrize("way", ["generate", "stream", "step"])
def test_an_interrupt_ends_the_wait_and_the_model_goes_on(way):
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, way], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    time.sleep(0.3)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    at, tokens = out.split()
    assert float(at) - sent < 0.3, "Ctrl-C is heard within 0.3 s"
    assert tokens == "2" and process.returncode == 0


def test_an_interrupt_ends_the_loading_of_a_model(tmp_path):
    # A pipe that nobody writes to takes as long as the largest model.
    (tmp_path / "model.safetensors").symlink_to(ROOT / "models/demo/model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    program = "import sys, time, fuserun\nprint('go', flush=True)\ntry: fuserun.LLM(sys.argv[1], device='cpu')\nexcept KeyboardInterrupt: print(time.time(), flush=True); import os; os._exit(0)"
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    time.sleep(0.5)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert float(out) - sent < 0.3


STRUCTURED = [
    ({"regex": "[0-9]{3}-[0-9]{2}"}, lambda text: text[3] == "-" and (text[:3] + text[4:]).isdigit() and len(text) == 6),
    ({"choice": ["whale", "ship \"Pequod\""]}, lambda text: text in ("whale", "ship \"Pequod\"")),
    ({"grammar": 'start: "a" "b"+ "c"'}, lambda text: text[0] == "a" and text[-1] == "c" and set(text[1:-1]) == {"b"}),
]


@pytest.mark.parametrize("form, holds", STRUCTURED, ids=["regex", "choice", "grammar"])
def test_answers_are_held_to_a_form(llm, form, holds):
    params = SamplingParams(max_tokens=200, seed=1, structured_outputs=fuserun.StructuredOutputsParams(**form))
    answer = llm.generate("Call me", params, use_tqdm=False)[0].outputs[0]
    assert holds(answer.text) and answer.finish_reason == "stop", answer


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ahab", "Ishmael"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Person:
    @staticmethod
    def model_json_schema():
        return SCHEMA


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA), Person], ids=["dict", "text", "class"])
def test_answers_are_json_of_a_schema(llm, schema):
    params = SamplingParams(max_tokens=200, seed=3, structured_outputs=fuserun.StructuredOutputsParams(json=schema))
    for output in (llm.generate("Call me", params, use_tqdm=False)[0], llm.chat([{"role": "user", "content": "Who?"}], params, use_tqdm=False)[0]):
        person = json.loads(output.text)
        assert person["name"] in ("Ahab", "Ishmael") and 1 <= person["age"] <= 99 and output.outputs[0].finish_reason == "stop"


def test_an_answer_may_be_any_object(llm):
    # Of what may follow only the end of the object is likely then.
    end = {llm.encode("}", add_special_tokens=False)[0]: 100.0}
    params = SamplingParams(temperature=0, max_tokens=30, logit_bias=end, structured_outputs=fuserun.StructuredOutputsParams(json_object=True))
    answer = llm.generate("Call me", params, use_tqdm=False)[0].outputs[0]
    assert isinstance(json.loads(answer.text), dict) and answer.finish_reason == "stop"


MISTAKES = [
    (lambda llm: llm.generate(["a", "b"], [GREEDY]), "2 prompts and 1 sampling params: give as many, or one for all"),
    (lambda llm: llm.generate(""), "the prompt is empty: give one token at least"),
    (lambda llm: llm.generate([["x"]]), "a prompt is a text or a list of token ids, not ['x']"),
    (lambda llm: llm.generate([7.5]), "a prompt is a text or a list of token ids, not 7.5"),
    (lambda llm: llm.generate([[1], [99999]]), "prompt 1: token 99999 is not below the vocabulary's size, 4096"),
    (
        lambda llm: llm.generate([[1] * 2000]),
        "the prompt has 2000 tokens and the context holds 1024: shorten it, or load the model with a longer context",
    ),
    (lambda llm: llm.logits([]), "the prompt is empty: give one token at least"),
    (lambda llm: llm.generate("a", SamplingParams(stop=["x"] * 17)), "`stop` has 17 texts; give 16 at most"),
    (lambda llm: llm.generate("a", SamplingParams(logit_bias={1: 200})), "`logit_bias` of token 1 is no number from -100 to 100"),
    (lambda llm: llm.chat("Hello"), "a conversation is a list of messages, not 'Hello'"),
    (lambda llm: llm.chat([{"role": "king", "content": "x"}]), "`messages[0].role` is \"king\"; give system, developer, user, assistant or tool"),
    (lambda llm: SamplingParams(temperature=-1), "temperature is -1; give 0 (greedy) to 100"),
    (lambda llm: SamplingParams(temperature=float("nan")), "temperature is nan; give 0 (greedy) to 100"),
    (lambda llm: SamplingParams(top_p=0), "top_p is 0; give more than 0, at most 1 (off)"),
    (lambda llm: SamplingParams(max_tokens=0), "max_tokens is 0; give 1 or more, or None for what the context has left"),
    (lambda llm: SamplingParams(n=9), "n is 9; give 1 to 8"),
    (lambda llm: fuserun.StructuredOutputsParams(), "nothing is given; give one of json, regex, choice, grammar and json_object"),
    (lambda llm: fuserun.StructuredOutputsParams(json={}, regex="a"), "json and regex is given; give one of json, regex, choice, grammar and json_object"),
    (lambda llm: LLM(device="tpu"), "`tpu` is no device: auto, cpu, cuda:N or interpreter"),
    (lambda llm: LLM(max_num_seqs=0), "max_num_seqs is 0; give a whole number from 1 on"),
    (lambda llm: LLM("/nowhere/at/all"), "/nowhere/at/all: "),
]


@pytest.mark.parametrize("mistake, said", MISTAKES, ids=range(len(MISTAKES)))
def test_what_is_wrong_is_a_value_error_in_a_line(llm, mistake, said):
    with pytest.raises(ValueError) as error:
        mistake(llm)
    message = str(error.value)
    assert message.startswith(said) and "\n" not in message, message


def test_a_form_that_is_not_understood_is_a_value_error(llm):
    params = SamplingParams(structured_outputs=fuserun.StructuredOutputsParams(regex="("))
    with pytest.raises(ValueError, match="`regex` cannot be held to: "):
        llm.generate("a", params)


def test_an_argument_that_is_not_known_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'gpu_memory'"):
        LLM(gpu_memory=0.5)
    with pytest.raises(TypeError):
        SamplingParams(best_of=2)


def test_a_model_that_was_ended_says_so():
    with LLM(device="cpu", threads=1) as llm:
        assert llm.max_num_seqs == 4 and llm.device == "cpu"
    for use in (lambda: llm.generate("Call me"), lambda: llm.encode("a"), lambda: llm.logits("a")):
        with pytest.raises(RuntimeError, match="the model has been ended: load it again"):
            use()
    llm.exit()


@pytest.mark.parametrize("turn", range(3))
def test_to_end_the_model_ends_who_waits_for_it(turn):
    llm = LLM(device="cpu", threads=1, max_num_seqs=1)
    told = []

    def ask():
        try:
            llm.generate(["Call me"] * 3, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)
        except RuntimeError as error:
            told.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    llm.exit()
    thread.join(timeout=20)
    assert not thread.is_alive() and len(told) == 1 and "\n" not in told[0], told


def test_a_process_that_was_forked_is_told(llm, run):
    program = """
import os
from fuserun import LLM
llm = LLM(device="cpu", threads=1)
child = os.fork()
if child == 0:
    try:
        llm.generate("Call me")
    except RuntimeError as error:
        os._exit(7 if "forked" in str(error) else 8)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(program).stdout == "7\n"


def test_defaults_are_those_of_the_model(llm):
    params = llm.get_default_sampling_params()
    config = json.loads((ROOT / "models/demo/generation_config.json").read_text())
    assert params.temperature == (config.get("temperature", 1.0) if config.get("do_sample") else 0.0)
    assert params.max_tokens == config.get("max_new_tokens", 64)
    assert len(llm.generate("Call me", use_tqdm=False)[0].token_ids) <= params.max_tokens
