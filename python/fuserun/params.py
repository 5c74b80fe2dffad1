"""How texts are made."""

from __future__ import annotations

import json
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass
class StructuredOutputsParams:
    """What an answer is held to: one of these. Only tokens that it allows are chosen, then one that ends the text; `max_tokens` cuts it all the same."""

    json: Any = None
    """A JSON schema: a dict, its text, or a class with `model_json_schema` (pydantic's models have it). Parts that cannot be held to are an error."""
    regex: str | None = None
    """A regular expression that matches the whole text."""
    choice: list[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A grammar in Lark's syntax, as llguidance reads it."""
    json_object: bool | None = None
    """True: any JSON object."""

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            said = " and ".join(given) or "nothing"
            raise ValueError(f"{said} is given; give one of json, regex, choice, grammar and json_object")

    def fields(self) -> dict[str, Any]:
        """The same as fields of the HTTP API."""
        if self.json is not None:
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": _schema(self.json), "strict": True}}}
        if self.json_object:
            return {"response_format": {"type": "json_object"}}
        if self.choice is not None:
            if not self.choice or not all(isinstance(text, str) and text for text in self.choice):
                raise ValueError("choice is a list of texts, one at least, none of them empty")
            return {"grammar": "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choice)}
        return {"regex": self.regex} if self.regex is not None else {"grammar": self.grammar}


def _schema(schema: Any) -> Any:
    if hasattr(schema, "model_json_schema"):
        return schema.model_json_schema()
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except ValueError as error:
        raise ValueError(f"the schema is not JSON: {error}") from None


# What a number may be: least, most, and what is to be given.
_RANGES = {
    "temperature": (0.0, 100.0, "0 (greedy) to 100"),
    "top_p": (0.0, 1.0, "more than 0, at most 1 (off)"),
    "min_p": (0.0, 1.0, "0 (off) to 1"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2"),
    "repetition_penalty": (1e-9, 1e9, "1e-9 to 1e9, 1 is off"),
}
_COUNTS = {
    "max_tokens": (1, 2**63 - 1, "1 or more, or None for what the context has left"),
    "n": (1, 8, "1 to 8"),
    "top_k": (-1, 2**32 - 1, "a number of tokens, or 0 for all"),
    "logprobs": (0, 20, "0 to 20"),
    "seed": (-(2**63), 2**63 - 1, "a whole number of 64 bits"),
}


@dataclass
class SamplingParams:
    """How the next token is chosen, and where a text ends. The first three are nano-vllm's, in its order; the others are vLLM's."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    max_tokens: int | None = 64
    """Tokens at most, cut to what the context has left; None: that."""
    ignore_eos: bool = False
    """Go on past the tokens that end a text."""
    _: KW_ONLY
    n: int = 1
    """Answers per prompt, each with draws of its own."""
    top_p: float = 1.0
    """Keep the most likely tokens that have this probability together; 1 keeps all."""
    top_k: int = 0
    """Keep the K most likely tokens; 0 and -1 keep all."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the most likely one's probability; 0 keeps all."""
    seed: int | None = None
    """The same seed gives the same text; None draws one, which the result has as `seed`."""
    stop: str | list[str] | None = None
    """Texts that end an answer; they are not part of it. Up to 16."""
    stop_token_ids: list[int] | None = None
    """Tokens that end an answer, beside the model's own. Up to 16."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens once for each time that the answer has them."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that the prompt or the answer has, and multiplies the others; 1 is off."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits of these tokens, -100 to 100. Up to 1024."""
    logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each chosen one, with their log probabilities. Up to 20."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputsParams | None = None
    """What the answer is held to."""

    def __post_init__(self) -> None:
        for name, (least, most, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; give {wanted}")
            if math.isnan(value) or not least <= value <= most or (name == "top_p" and value == 0):
                raise ValueError(f"{name} is {value}; give {wanted}")
        for name, (lowest, highest, wanted) in _COUNTS.items():
            count = getattr(self, name)
            if count is None and name in ("max_tokens", "logprobs", "seed"):
                continue
            if not isinstance(count, int) or isinstance(count, bool) or not lowest <= count <= highest:
                raise ValueError(f"{name} is {count!r}; give {wanted}")
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise ValueError("structured_outputs is no StructuredOutputsParams")

    def fields(self, chat: bool = False) -> dict[str, Any]:
        """The same as fields of the HTTP API: of its completions, or of its chats."""
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "n", "ignore_eos")
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("max_tokens", "seed", "stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = list(value) if isinstance(value, tuple) else value
        if self.logit_bias:
            fields["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if self.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": self.logprobs} if chat else {"logprobs": self.logprobs}
        if self.structured_outputs is not None:
            fields |= self.structured_outputs.fields()
        return fields
