"""Language models on one GPU, a CUDA graph per step, or on the CPU.

>>> from fuserun import LLM, SamplingParams
>>> llm = LLM()
>>> llm.generate("Call me", SamplingParams(temperature=0, max_tokens=4))[0]["text"]
', I say,'

`LLM` is asked from one thread or from many, `AsyncLLM` from an event loop; `fuserun.asgi` answers the HTTP API of `fuserun serve` in this process.
The names are those of nano-vllm and vLLM where these have one.
"""

from ._native import __version__
from .aio import AsyncLLM
from .llm import LLM
from .outputs import CompletionOutput, Logprob, Piece, RequestMetrics, RequestOutput
from .params import SamplingParams, StructuredOutputsParams
from .tokenizer import Tokenizer

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "Piece",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tokenizer",
    "__version__",
]
