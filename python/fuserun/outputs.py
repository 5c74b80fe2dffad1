"""What comes of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Logprob:
    """How likely a token was, by the model's logits: before temperature, penalties and filters."""

    logprob: float
    """The logarithm of its probability."""
    rank: int | None
    """Its place among the likeliest, from 1 on; None: behind those that were asked for."""
    decoded_token: str
    """Its text."""


@dataclass
class CompletionOutput:
    """One answer."""

    index: int
    """Which of the prompt's answers."""
    text: str
    """The text, without what ended it."""
    token_ids: list[int]
    """Its tokens, one that ended it among them."""
    finish_reason: str | None = None
    """`stop`, `length` for as many tokens as asked for or as the context holds, or `tool_calls`."""
    stop_reason: str | None = None
    """The stop text that ended it."""
    logprobs: list[dict[int, Logprob]] | None = None
    """For each token how likely it and the likeliest were, where `logprobs` asks for that."""
    reasoning: str = ""
    """What a model that thinks thought before the answer of a chat."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls of tools in the answer of a chat, as OpenAI's API has them."""

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of its tokens' log probabilities, where `logprobs` asks for them."""
        if self.logprobs is None:
            return None
        return sum(scores[token].logprob for token, scores in zip(self.token_ids, self.logprobs))

    @property
    def message(self) -> dict[str, Any]:
        """The answer of a chat as a message, to be put after those that it answers."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


@dataclass(frozen=True)
class RequestMetrics:
    """What a prompt took."""

    prompt_ms: float
    """Milliseconds until it was read, waiting included."""
    answer_ms: float
    """Milliseconds from then on."""


class RequestOutput(dict):
    """What came of a prompt: nano-vllm's dict, with `text` and `token_ids` of the first answer, and vLLM's object."""

    request_id: str
    """Its number, as a text."""
    prompt: str | None
    """The prompt as it was given, or as the chat template made it; None where tokens were given."""
    prompt_token_ids: list[int]
    """Its tokens."""
    outputs: list[CompletionOutput]
    """The answers."""
    finished: bool
    """Whether all answers have ended."""
    num_prompt_tokens: int
    """Tokens of the prompt."""
    num_cached_tokens: int
    """Tokens of the prompt that another request had left behind, and that were not read again."""
    seed: int
    """What fixed the draws."""
    metrics: RequestMetrics
    """What it took."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        outputs: list[CompletionOutput],
        taken: tuple[int, int, int, int, float, float],
    ) -> None:
        super().__init__(text=outputs[0].text, token_ids=outputs[0].token_ids)
        self.request_id, self.prompt, self.prompt_token_ids, self.outputs = request_id, prompt, prompt_token_ids, outputs
        self.num_prompt_tokens, self.num_cached_tokens, _, self.seed, read, answered = taken
        self.finished, self.metrics = True, RequestMetrics(read, answered)

    @property
    def text(self) -> str:
        """The text of the first answer."""
        return self["text"]

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the first answer."""
        return self["token_ids"]

    def __repr__(self) -> str:
        return f"RequestOutput(request_id={self.request_id!r}, prompt={self.prompt!r}, outputs={self.outputs!r})"


class Piece(str):
    """A piece of a text as it comes: the text itself, with what else there is to know of it."""

    token_ids: list[int]
    """Its tokens; a piece of a character has none until the character is whole."""
    choice: int
    """Which of the prompt's answers."""
    reasoning: str
    """What a model that thinks thought, which is not part of the text."""
    finish_reason: str | None
    """Why the answer has ended, with this piece."""
    stop_reason: str | None
    """The stop text that ended it."""
    tool_calls: list[dict[str, Any]]
    """The answer's calls, whole, with its last piece."""

    def __new__(
        cls,
        text: str,
        token_ids: list[int],
        choice: int = 0,
        reasoning: str = "",
        finish_reason: str | None = None,
        stop_reason: str | None = None,
        tool_calls: list[dict[str, Any]] | None = None,
    ) -> Piece:
        piece = super().__new__(cls, text)
        piece.token_ids, piece.choice, piece.reasoning = token_ids, choice, reasoning
        piece.finish_reason, piece.stop_reason, piece.tool_calls = finish_reason, stop_reason, tool_calls or []
        return piece
