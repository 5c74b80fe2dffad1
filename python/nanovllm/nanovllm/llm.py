"""nano-vllm's LLM over fuserun's."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import fuserun
from fuserun import RequestOutput
from fuserun.llm import Params, Prompt

# What nano-vllm takes and fuserun has no use for: it plans its memory for the slots and positions that are asked for, and each step is one graph.
_WITHOUT_EFFECT = ("max_num_batched_tokens", "gpu_memory_utilization", "enforce_eager", "hf_config", "kvcache_block_size", "num_kvcache_blocks")
# What nano-vllm computes of the model's files, whatever is given; here too.
_KNOWN = ("max_num_seqs", "max_model_len", "tensor_parallel_size", "eos", *_WITHOUT_EFFECT)
# What fuserun takes beside.
_FUSERUN = ("device", "threads", "checkpoint", "description", "weights", "tuning", "served_model_name", "pull")
# The most slots that a GPU has: many prompts are taken side by side, as there.
_MOST_SLOTS = 32


class LLM(fuserun.LLM):
    """A model, by nano-vllm's arguments. Those of `fuserun.LLM` may be given by name too."""

    def __init__(self, model: str | os.PathLike[str], **kwargs: Any) -> None:
        """Loads the model.

        - `max_num_seqs`: prompts side by side, cut to what the device has
        - `max_model_len`: positions of a sequence, cut to the model's own; 4096 where it is not given
        - `tensor_parallel_size`: 1
        - `enforce_eager`, `gpu_memory_utilization`, `max_num_batched_tokens`, `kvcache_block_size`, `num_kvcache_blocks`, `hf_config`, `eos`: without effect
        """
        for name in kwargs:
            if name not in _KNOWN and name not in _FUSERUN:
                near = difflib.get_close_matches(name, _KNOWN + _FUSERUN, 1)
                meant = f"; is it {near[0]}?" if near else ""
                raise TypeError(f"LLM takes no argument {name!r}{meant}")
        gpus = kwargs.get("tensor_parallel_size", 1)
        if gpus != 1:
            raise ValueError(f"tensor_parallel_size is {gpus}: a model runs on one GPU; examples/ray_serve.py has one replica per GPU")
        slots = kwargs.get("max_num_seqs")
        if slots is not None and slots >= _MOST_SLOTS:
            slots = None
        own = {name: kwargs[name] for name in _FUSERUN if name in kwargs}
        super().__init__(model, max_num_seqs=slots, _most_model_len=kwargs.get("max_model_len"), _most_slots=_MOST_SLOTS, **own)
        self.last_ttft_stats: dict[str, float] | None = None
        """Seconds until the prompts of the last `generate` were read and their first tokens chosen: `avg`, `min` and `max`, waiting included."""

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, use_tqdm: bool = True) -> list[RequestOutput]:
        """Goes on with texts. Each result is a dict with `text`, special tokens in it, and `token_ids`."""
        params = fuserun.SamplingParams() if sampling_params is None else sampling_params
        outputs = super().generate(prompts, params, use_tqdm)
        for output in outputs:
            for answer in output.outputs:
                answer.text = self.decode(answer.token_ids)
            output["text"] = output.outputs[0].text
        seconds = [output.metrics.prompt_ms / 1000 for output in outputs]
        self.last_ttft_stats = {"avg": sum(seconds) / len(seconds), "min": min(seconds), "max": max(seconds)} if seconds else None
        return outputs
