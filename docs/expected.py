#!/usr/bin/env python3
"""Writes what Hugging Face transformers computes for a checkpoint, for `fuserun verify --against`.

    pip install torch transformers safetensors
    python3 docs/expected.py CHECKPOINT -o expected.safetensors [--tokens 1,2,3] [--trust-remote-code]

Of a model of several parts, its language model is run, on text, and its modules are called as in the language model alone.

Tensors in the file, all of the first and only sequence, in fp32:
    tokens             i32 [tokens]
    logits             f32 [tokens, vocabulary]
    hidden_states.0    f32 [tokens, hidden]: the input of the first layer; hidden_states.N the output of layer N - 1,
                       the last one after the last norm, as transformers returns them
    MODULE             f32 [tokens, ...]: the output of each module that has a weight of its own, by its name
    MODULE.input       f32 [tokens, ...]: its input
    attention.N.q, .k  f32 [tokens, heads, size]: what the attention of layer N reads, where RoPE is a function called
                       apply_rotary_pos_emb, and attention one called eager_attention_forward; without that, what RoPE returns
"""

import argparse
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("expected.safetensors"))
    parser.add_argument("--tokens", help="ids, by commas; 16 spread over the vocabulary if not given")
    parser.add_argument("--logits-only", action="store_true", help="leave the values between out")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model code in the checkpoint")
    return parser.parse_args()


def own_name(module: str) -> str:
    """A module's name where the language model is alone."""
    for before, now in [("model.language_model.", "model."), ("model.text_model.", "model."), ("language_model.", "")]:
        if module.startswith(before):
            return now + module.removeprefix(before)
    return module


@torch.no_grad()
def main() -> None:
    args = arguments()
    config = AutoConfig.from_pretrained(args.checkpoint, trust_remote_code=args.trust_remote_code)
    several = getattr(config, "text_config", None) is not None
    model = (AutoModelForImageTextToText if several else AutoModelForCausalLM).from_pretrained(
        args.checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=args.trust_remote_code,
    ).eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if args.tokens:
        tokens = torch.tensor([int(token) for token in args.tokens.split(",")])
    else:
        # Spread evenly by the golden ratio: no two alike, none a special token by design.
        tokens = torch.tensor([int(vocabulary * ((index + 1) * 0.6180339887 % 1)) for index in range(16)])
    values = {}

    def keep(name: str, value) -> None:
        """Keeps a float tensor of one sequence, the first time it is seen."""
        rows = torch.is_tensor(value) and value.is_floating_point() and value.dim() >= 2
        if rows and name not in values and len(tokens) in value.shape[:2]:
            value = value[0] if value.shape[0] == 1 else value
            values[name] = value.float().contiguous().clone()

    def hook(name: str):
        def run(_module, inputs, output) -> None:
            keep(name, output)
            if inputs:
                keep(f"{name}.input", inputs[0])

        return run

    layer = None

    def enter(module, *_) -> None:
        nonlocal layer
        layer = module.layer_idx

    def turned(results) -> None:
        """Keeps q and k, heads before tokens, under the number of the layer that runs."""
        for letter, value in zip("qk", results):
            if layer is not None and torch.is_tensor(value) and value.dim() == 4 and value.shape[2] == len(tokens):
                keep(f"attention.{layer}.{letter}", value.transpose(1, 2))

    def watch(modeling) -> None:
        """Watches the function that a modeling file with RoPE has for attention, else that for RoPE."""
        attend, turn = (getattr(modeling, name, None) for name in ("eager_attention_forward", "apply_rotary_pos_emb"))

        def attending(module, query, key, *inputs, **named):
            turned((query, key))
            return attend(module, query, key, *inputs, **named)

        def turning(*inputs, **named):
            results = turn(*inputs, **named)
            turned(results if isinstance(results, tuple) else ())
            return results

        if turn and attend:
            modeling.eager_attention_forward = attending
        elif turn:
            modeling.apply_rotary_pos_emb = turning

    if not args.logits_only:
        watch(sys.modules[type(model.get_decoder() if several else model).__module__])
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not args.logits_only and module is not head and next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(hook(own_name(name)))
        if isinstance(getattr(module, "layer_idx", None), int):
            module.register_forward_pre_hook(enter)
    result = model(tokens[None], output_hidden_states=not args.logits_only, use_cache=False)
    for index, state in enumerate(result.hidden_states or ()):
        keep(f"hidden_states.{index}", state)
    values |= {"tokens": tokens.to(torch.int32), "logits": result.logits[0].float().contiguous()}
    save_file(values, args.output)
    print(f"{args.output}: {len(values)} tensors, {len(tokens)} tokens, transformers' {type(model).__name__}")


if __name__ == "__main__":
    main()
