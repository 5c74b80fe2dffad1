#!/usr/bin/env python3
"""Makes tests/verify/nemotron, the checkpoint of docs/add-a-model.md: tiny, with random weights. It is a Nemotron under an architecture of its own, which
no shipped description serves.

    pip install torch transformers safetensors
    python3 tests/verify/make.py
"""

import json
import pathlib

import torch
from transformers import NemotronConfig, NemotronForCausalLM

FOLDER = pathlib.Path(__file__).resolve().parent / "nemotron"


@torch.no_grad()
def main() -> None:
    config = NemotronConfig(
        vocab_size=192,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
        bos_token_id=1,
        eos_token_id=2,
    )
    model = NemotronForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        scale = 0.3 if weight.dim() == 1 else 1.0 / weight.shape[1] ** 0.5
        weight.copy_((scale * torch.randn(weight.shape, generator=generator)).to(torch.bfloat16))
    model.to(torch.bfloat16).save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((FOLDER / "config.json").read_text()) | dict(architectures=["MyOwnForCausalLM"])
    (FOLDER / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    for path in FOLDER.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
