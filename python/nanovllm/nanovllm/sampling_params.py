"""As nano-vllm has it: `temperature`, `max_tokens`, `ignore_eos`; by name also what `fuserun.SamplingParams` takes."""

from fuserun import SamplingParams

__all__ = ["SamplingParams"]
