"""A model's tokenizer, by the names that Hugging Face's tokenizers have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ._native import Engine


class Tokenizer:
    """The tokenizer of a model that is loaded."""

    def __init__(self, engine: Callable[[], Engine], about: dict[str, Any]) -> None:
        self._engine, self._about = engine, about

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, with those that the model expects around one."""
        return self._engine().encode(text, add_special_tokens, False)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self._engine().decode(ids, skip_special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> str | list[int]:
        """The tokens, or the text, that the model's chat template makes of messages. Further arguments, `enable_thinking` say, are its variables."""
        given = {"messages": list(conversation), "tools": list(tools or []), "variables": variables, "begins": add_generation_prompt}
        text, tokens = self._engine().render(json.dumps(given))
        return tokens if tokenize else text

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None where it has none."""
        return self._engine().token_to_id(token)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None where it has none."""
        return self._engine().id_to_token(token_id)

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, where the model has one."""
        return self._about["bos"]

    @property
    def eos_token_id(self) -> int | None:
        """The first of the tokens that end a text; None where the files name none."""
        return next(iter(self._about["eos"]), None)

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a text or a turn."""
        return list(self._about["eos"])

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self._about["vocab_size"]

    def __len__(self) -> int:
        return self.vocab_size
