"""A model that is asked from threads."""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import select
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Union

from ._native import Bell, Engine, Job
from .collect import Answers, Pieces
from .outputs import Piece, RequestOutput
from .params import SamplingParams
from .tokenizer import Tokenizer

Prompt = Union[str, Sequence[int], dict]
"""A text, tokens, or one of these in a dict as `prompt` or `prompt_token_ids`."""
Params = Union[SamplingParams, Sequence[SamplingParams], None]
Messages = Sequence[dict]

_log = logging.getLogger("fuserun")
_loaded: weakref.WeakSet[LLM] = weakref.WeakSet()


@atexit.register
def _exit() -> None:
    for llm in list(_loaded):
        llm.exit()


class LLM:
    """A model, loaded.

    `model` is a Hugging Face folder, a .gguf, a .fuse or a .toml file, or OWNER/NAME of a model in the hub's cache; None is the demo model. It runs on
    a GPU where there is one that can be used and that it fits on, else on the CPU; what was chosen is logged in a line.

    Threads may ask at the same time: as many prompts as there are slots go on side by side, the others wait. While the model works other threads run,
    and Ctrl-C ends the wait.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        threads: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        description: str | os.PathLike[str] | None = None,
        weights: str = "auto",
        tuning: str = "auto",
        served_model_name: str | None = None,
        pull: bool = False,
        _most_model_len: int | None = None,
        _most_slots: int | None = None,
    ) -> None:
        """Loads the model.

        - `device`: auto, cpu, gpu or cuda:N
        - `max_model_len`: positions of a sequence; None: the model's own, up to 4096
        - `max_num_seqs`: slots; None: 8 on a GPU, fewer where they do not fit, and 4 on the CPU. A GPU has 1, 2, 4, 8, 16 or 32
        - `threads`: CPU threads; None: every core
        - `checkpoint`: the weights of a .fuse or .toml file
        - `description`: a description to use instead of the one that serves the checkpoint
        - `weights`: how they are taken: auto, as they are stored; or bf16, f16, q8_0, q4_0 and others
        - `tuning`: launch shapes on a GPU: auto, none, or a record of `fusec tune`
        - `served_model_name`: what answers of the HTTP API call the model
        - `pull`: get a model of the hub that is not in its cache
        """
        options = {
            "model": _path(model), "device": device, "max_model_len": max_model_len, "max_num_seqs": max_num_seqs, "threads": threads,
            "checkpoint": _path(checkpoint), "description": _path(description), "weights": weights, "tuning": tuning,
            "served_model_name": served_model_name, "pull": pull, "most_model_len": _most_model_len,
            "most_slots": _most_slots,
        }
        self._native = Engine(json.dumps(options))
        self._process = os.getpid()
        self._requests, self._bell = itertools.count(), Bell()
        self._added: dict[int, _Added] = {}
        for note in self._native.notes:
            _log.warning(note)
        about = json.loads(self._native.about())
        self._about = about
        self.model: str = about["name"]
        """What the model is called."""
        self.device: str = about["device"]
        """Where it runs: `cpu`, or `cuda:N`."""
        self.max_model_len: int = about["max_model_len"]
        """Positions of a sequence."""
        self.max_num_seqs: int = about["max_num_seqs"]
        """Prompts that go on side by side."""
        self.tokenizer = Tokenizer(self._engine, about)
        """Its tokenizer."""
        _loaded.add(self)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.exit()

    def __repr__(self) -> str:
        return f"<LLM {self.model} on {self.device}, {self.max_num_seqs} slots of {self.max_model_len} positions>"

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, use_tqdm: bool = True) -> list[RequestOutput]:
        """Goes on with texts, and gives what came of each, in their order.

        `sampling_params`: one for all, one per prompt, or None for what the model's files say with at most 64 tokens. With `use_tqdm` a bar shows how
        many have ended, where the package tqdm is there.
        """
        return self._whole(*self._texts(prompts, sampling_params), use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers conversations: one, as a list of messages, or a list of them. They go through the model's chat template.

        `tools` are functions as OpenAI's API has them; `tool_choice` is `auto`, `none`, `required`, or one of them by its name. Without
        `sampling_params` an answer is as the model's files say, and as long as it will.
        """
        return self._whole(*self._chats(messages, sampling_params, tools, tool_choice, chat_template_kwargs), use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Piece]:
        """Goes on with a text, and gives each piece as it comes. To leave the loop ends the answer."""
        return self._pieces(*self._texts([prompt], sampling_params))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[Piece]:
        """Answers a conversation, and gives each piece as it comes. To leave the loop ends the answer."""
        return self._pieces(*self._chats([messages], sampling_params, tools, tool_choice, chat_template_kwargs))

    def logits(self, prompt: Prompt) -> memoryview[float]:
        """The logits after each token of a prompt: 32-bit floats, a row per token. `numpy.asarray` takes them as they are."""
        tokens = self._tokens(prompt)[1]
        floats = self._engine().logits(tokens).wait()
        return memoryview(floats).cast("f", (len(tokens), len(floats) // 4 // len(tokens)))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, with those that the model expects around one."""
        return self.tokenizer.encode(text, add_special_tokens)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where nobody says: what the model's files say, and at most 64 tokens where they do not."""
        given = {name: value for name, value in self._about["defaults"].items() if value is not None}
        return SamplingParams(**given)

    def add_request(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> int:
        """Begins a text beside others; `step` tells when it has ended. Gives its number."""
        asking, answers = self._texts([prompt], sampling_params)
        job = self._ask(asking, answers, False, self._bell)
        if job.number is not None:
            self._added[job.number] = _Added(job, answers[0])
        return int(answers[0].request_id)

    def step(self) -> tuple[list[tuple[int, list[int]]], int]:
        """Waits for the texts that `add_request` began to go on, each by a token.

        Gives those that have ended, number and tokens of each, and how many tokens were computed: those of prompts that were read as a positive
        number, or else those that were chosen as a negative one.
        """
        while self._added:
            for number in self._bell.rung():
                if number in self._added:
                    self._added[number].take()
            came = [added for added in self._added.values() if added.came]
            # Prompts that have been read go first, and apart.
            came = [added for added in came if not added.answers.outputs] or came
            if came:
                return self._advance(came)
            # A signal ends the wait.
            select.select([self._bell], [], [])
        return [], 0

    def _advance(self, all_added: list[_Added]) -> tuple[list[tuple[int, list[int]]], int]:
        ended: list[tuple[int, list[int]]] = []
        count = 0
        for added in all_added:
            first, tokens = not added.answers.outputs, 0
            try:
                tokens, done = added.advance()
            except Exception:
                self._added = {number: other for number, other in self._added.items() if other is not added}
                raise
            count += len(added.answers.tokens or []) if first else -tokens
            if done:
                self._added = {number: other for number, other in self._added.items() if other is not added}
                ended.append((int(added.answers.request_id), added.answers.outputs[0].token_ids))
        return ended, count

    def is_finished(self) -> bool:
        """Whether all texts that `add_request` began have ended."""
        return not self._added

    def exit(self) -> None:
        """Ends the model and gives its memory back. What is being answered is cut off."""
        if os.getpid() == self._process:
            self._added.clear()
            self._native.exit()

    def _engine(self) -> Engine:
        if os.getpid() != self._process:
            raise RuntimeError("the model was loaded before this process was forked: load it in this process, or start processes with spawn")
        return self._native

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        given: Any = prompt
        if isinstance(prompt, dict):
            given = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt.get("prompt")
        if isinstance(given, str):
            return given, self._engine().encode(given, True, True)
        tokens = list(given) if isinstance(given, Sequence) or hasattr(given, "__array__") else None
        if tokens is None or not all(_is_token(token) for token in tokens):
            raise ValueError(f"a prompt is a text or a list of token ids, not {_shown(given)}")
        return None, [int(token) for token in tokens]

    def _texts(self, prompts: Any, params: Params) -> tuple[list, list[Answers]]:
        if isinstance(prompts, (str, dict)) or (isinstance(prompts, Sequence) and prompts and _is_token(prompts[0])):
            prompts = [prompts]
        prompts = list(prompts)
        asking, answers = [], []
        for prompt, params in zip(prompts, self._each(params, len(prompts), self.get_default_sampling_params)):
            text, tokens = self._tokens(prompt)
            asking.append((tokens, json.dumps(params.fields())))
            answers.append(Answers(str(next(self._requests)), text, tokens, params, self._native.decode))
        return asking, answers

    def _chats(
        self,
        messages: Any,
        params: Params,
        tools: Sequence[dict[str, Any]] | None,
        tool_choice: str | dict[str, Any] | None,
        variables: dict[str, Any] | None,
    ) -> tuple[list, list[Answers]]:
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise ValueError(f"a conversation is a list of messages, not {_shown(messages)}")
        if messages and isinstance(messages[0], dict):
            messages = [messages]
        if isinstance(tool_choice, str) and tool_choice not in ("auto", "none", "required"):
            tool_choice = {"type": "function", "function": {"name": tool_choice}}
        more = {"tools": list(tools) if tools else None, "tool_choice": tool_choice, "chat_template_kwargs": variables}
        asking, answers = [], []
        for conversation, params in zip(messages, self._each(params, len(messages), self._chat_default)):
            fields = params.fields(chat=True) | more | {"messages": list(conversation)}
            asking.append((None, json.dumps(fields)))
            answers.append(Answers(str(next(self._requests)), None, None, params, self._native.decode))
        return asking, answers

    def _chat_default(self) -> SamplingParams:
        params = self.get_default_sampling_params()
        params.max_tokens = self._about["defaults"]["max_tokens"]
        return params

    def _each(self, params: Params, count: int, default: Any) -> list[SamplingParams]:
        if params is None:
            return [default()] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        params = list(params)
        if len(params) != count:
            raise ValueError(f"{count} prompts and {len(params)} sampling params: give as many, or one for all")
        return params

    def _ask(self, asking: list, answers: list[Answers], whole: bool, bell: Bell | None = None) -> Job:
        job, prompts, warnings = self._engine().ask(asking, whole, bell)
        for answer, prompt in zip(answers, prompts):
            if prompt is not None:
                answer.prompt, answer.tokens = self._native.decode(prompt, False), prompt
        for warning in warnings:
            _log.warning(warning)
        return job

    def _whole(self, asking: list, answers: list[Answers], use_tqdm: bool) -> list[RequestOutput]:
        if not asking:
            return []
        job = self._ask(asking, answers, True)
        results: dict[int, RequestOutput] = {}
        with _bar(len(answers), use_tqdm) as bar:
            try:
                while len(results) < len(answers):
                    for index, kind, came in job.wait():
                        result = _take(answers[index], kind, came)
                        if result is not None:
                            results[index] = result
                            bar.update(1)
            finally:
                job.cancel()
        return [results[index] for index in range(len(answers))]

    def _pieces(self, asking: list, answers: list[Answers]) -> Iterator[Piece]:
        job, pieces = self._ask(asking, answers, False), Pieces()

        def come() -> Iterator[Piece]:
            try:
                while True:
                    for _, kind, came in job.wait():
                        if kind == "failed":
                            raise came
                        if kind == "ended":
                            return
                        yield pieces.take(came)
            finally:
                job.cancel()

        return come()


class _Added:
    """A text that `add_request` began, and what has come of it that no step has told yet."""

    def __init__(self, job: Job, answers: Answers) -> None:
        self.job, self.answers = job, answers
        self.came: deque[tuple[int, str, Any]] = deque()

    def take(self) -> None:
        self.came.extend(self.job.poll())

    def advance(self) -> tuple[int, bool]:
        """Takes the next token, and what comes with it. How many tokens that was, and whether the text has ended."""
        tokens = 0
        while self.came and not (tokens and self.came[0][1] == "piece" and self.came[0][2][1]):
            _, kind, came = self.came.popleft()
            if kind == "failed":
                raise came
            if kind == "ended":
                return tokens, True
            before = self.answers.outputs.get(0)
            tokens += len(came[1])
            self.answers.take((came[0], (before.token_ids if before else []) + came[1], *came[2:]))
        return tokens, False


def _take(answers: Answers, kind: str, came: Any) -> RequestOutput | None:
    if kind == "failed":
        raise came
    if kind == "ended":
        return answers.ended(came)
    answers.take(came)
    return None


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.path.expanduser(os.fspath(path))


def _is_token(token: Any) -> bool:
    return hasattr(token, "__index__") and not isinstance(token, bool) and token >= 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def _bar(total: int, wanted: bool) -> Any:
    if wanted:
        try:
            from tqdm.auto import tqdm

            return tqdm(total=total, desc="Generating", unit="prompt", dynamic_ncols=True)
        except ImportError:
            pass
    return _NoBar()
