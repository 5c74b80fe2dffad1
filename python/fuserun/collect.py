"""From what the engine tells to what users read."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from typing import Any

from .outputs import CompletionOutput, Logprob, Piece, RequestOutput

# As some chat templates want them.
_LETTERS = string.ascii_letters + string.digits


def call_id() -> str:
    """A name for a call."""
    return "".join(random.choices(_LETTERS, k=9))


class Calls:
    """An answer's calls, whose arguments come in parts."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def take(self, parts: Sequence[tuple[int, str | None, str]]) -> None:
        for index, name, arguments in parts:
            if name is not None:
                function = {"name": name, "arguments": ""}
                self.calls.append({"id": call_id(), "type": "function", "function": function})
            self.calls[index]["function"]["arguments"] += arguments


class Answers:
    """The answers to one prompt, each taken as a whole."""

    def __init__(self, request_id: str, prompt: str | None, tokens: list[int] | None, params: Any, decode: Callable[..., str]) -> None:
        self.request_id, self.prompt, self.tokens, self.params, self.decode = request_id, prompt, tokens, params, decode
        self.outputs: dict[int, CompletionOutput] = {}

    def take(self, piece: tuple) -> None:
        choice, token_ids, text, thought, parts, scores, finish, stop = piece
        calls = Calls()
        calls.take(parts)
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = [self._scores(*score) for score in scores]
        if not self.params.skip_special_tokens:
            text = self.decode(token_ids, False)
        self.outputs[choice] = CompletionOutput(choice, text, token_ids, finish, stop, logprobs, thought, calls.calls)

    def _scores(self, token: int, chosen: float, top: list[tuple[int, float]]) -> dict[int, Logprob]:
        ranks: dict[int, tuple[int | None, float]] = {other: (rank, logprob) for rank, (other, logprob) in enumerate(top, 1)}
        ranks.setdefault(token, (None, chosen))
        return {other: Logprob(logprob, rank, self.decode([other], False)) for other, (rank, logprob) in ranks.items()}

    def ended(self, taken: tuple) -> RequestOutput:
        outputs = [self.outputs[choice] for choice in sorted(self.outputs)]
        return RequestOutput(self.request_id, self.prompt, self.tokens or [], outputs, taken)


class Pieces:
    """The answers to one prompt, piece by piece."""

    def __init__(self) -> None:
        self.calls: dict[int, Calls] = {}

    def take(self, piece: tuple) -> Piece:
        choice, token_ids, text, thought, parts, _, finish, stop = piece
        calls = self.calls.setdefault(choice, Calls())
        calls.take(parts)
        return Piece(text, token_ids, choice, thought, finish, stop, calls.calls if finish else [])
