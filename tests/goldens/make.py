#!/usr/bin/env python3
"""Makes the golden checkpoints: tiny random models and their fp32 logits from Hugging Face transformers.

    pip install torch==2.11.0 transformers==5.17.0 safetensors
    python3 tests/goldens/make.py [NAME…]        # all by default; no GPU needed; `demo` reads models/demo

A folder each: config.json and weights as transformers writes them, `config-v4.json` (the same configuration as transformers 4 wrote
it), and `expected.safetensors`: "tokens" i32 [T], "logits" f32 [T, vocab]. Prints one table row per golden.
"""

import copy
import json
import math
import pathlib
import shutil
import sys
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from families import FAMILIES

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parent.parent / "models" / "demo"
TOKENS = 40
SIZE_LIMIT = 500_000


def shape(hidden, heads, kv_heads, head_dim, intermediate, vocab, tied, layers=2, theta=10000.0, **more):
    rope = dict(rope_type="default", rope_theta=theta) | more.pop("rope", {})
    return dict(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        num_hidden_layers=layers,
        rope_parameters=rope,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


LLAMA3_ROPE = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
LLAMA = (LlamaConfig, LlamaForCausalLM)

# name: (classes, configuration, dtype stored, largest shard, changes of the configuration that must change the logits)
GOLDENS = {
    "llama-tied": (LLAMA, shape(128, 4, 2, 32, 96, 304, True), "bfloat16", None, []),
    "llama-untied": (
        LLAMA,
        shape(96, 3, 3, 32, 136, 317, False, rms_norm_eps=1e-2),
        "bfloat16",
        None,
        [dict(rms_norm_eps=1e-6)],
    ),
    "llama-odd": (LLAMA, shape(72, 3, 1, 24, 100, 331, False, layers=3), "bfloat16", None, []),
    "llama-mqa": (
        LLAMA,
        shape(128, 2, 1, 64, 96, 300, True, theta=500000.0),
        "bfloat16",
        None,
        [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))],
    ),
    "llama-bias": (
        LLAMA,
        shape(64, 4, 2, 16, 160, 352, False, attention_bias=True, mlp_bias=True),
        "bfloat16",
        None,
        [],
    ),
    "llama-rope3": (
        LLAMA,
        shape(64, 2, 1, 32, 160, 320, True, rope=LLAMA3_ROPE),
        "bfloat16",
        None,
        [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))],
    ),
    "llama-sharded-f32": (LLAMA, shape(64, 4, 2, 16, 96, 300, True), "float32", "100KB", []),
    "llama-sharded-f16": (LLAMA, shape(64, 4, 4, 16, 112, 309, False), "float16", "80KB", []),
    "mistral": (
        (MistralConfig, MistralForCausalLM),
        shape(64, 4, 2, 16, 160, 320, False, sliding_window=12),
        "bfloat16",
        None,
        [dict(sliding_window=None), dict(sliding_window=11), dict(sliding_window=13)],
    ),
    "qwen2": ((Qwen2Config, Qwen2ForCausalLM), shape(112, 7, 1, 16, 152, 304, True, theta=1e6), "bfloat16", None, []),
    "qwen3": ((Qwen3Config, Qwen3ForCausalLM), shape(64, 4, 2, 32, 128, 320, True, theta=1e6), "bfloat16", None, []),
} | FAMILIES


@torch.no_grad()
def randomise(model, generator, dtype) -> None:
    """Weights that every dropped or misplaced tensor shows with, rounded to bf16 (and to f16 where that is stored)."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        # GPT-2 stores [in, out].
        turned = model.config.model_type == "gpt2" or model.config.model_type == "gpt_oss" and weight.dim() == 3
        inputs = weight.shape[-2 if turned and weight.dim() > 1 else -1]
        norm = "norm" in name or ".ln_" in name
        if name.endswith(("A_log", "dt_bias")):
            # Memories of a few tokens and of all of them.
            value = 0.7 * noise - (1.0 if name.endswith("A_log") else 0.5)
        elif name.endswith((".D", "linear_attn.norm.weight")):
            value = 1.0 + 0.25 * noise
        elif model.config.model_type.startswith("gemma4") and name.endswith(("q_norm.weight", "k_norm.weight")):
            # Scores are not divided by the root of the size.
            value = 0.4 + 0.1 * noise
        elif norm and name.endswith("weight"):
            value = without_norm(model) + 0.25 * noise
        elif name.endswith(("router.scale", "per_expert_scale")):
            value = 1.0 + 0.25 * noise
        elif name.endswith("router.proj.weight"):
            # Its norm divides by the root of the size.
            value = 3.0 * noise
        elif name.endswith("sinks"):
            value = 2.0 + noise
        elif name.endswith("gate_up_proj") and model.config.model_type == "gpt_oss":
            value = 4.0 / inputs**0.5 * noise
        elif name.endswith("experts.down_proj") and model.config.model_type == "gpt_oss":
            value = 0.3 / inputs**0.5 * noise
        elif name.endswith(("router.bias", "proj_bias")):
            value = 0.5 * noise
        elif name.endswith(".bias"):
            # RoPE turns slowly in most of a head, so a key's bias shows in the softmax only when it is large; without RoPE a query's.
            large = dict(opt=["q_proj"], gpt_oss=["q_proj", "k_proj"]).get(model.config.model_type, ["k_proj"])
            value = (1.5 if any(part in name for part in large) else 0.3) * noise
        elif any(part in name for part in ["embed", "wte", "wpe"]) and "embed_out" not in name:
            value = 0.25 * noise
        elif "lm_head" in name or "embed_out" in name:
            value = 2.5 / inputs**0.5 * noise
        elif any(part in name for part in ["q_b_proj", "kv_b_proj", "kv_a_proj"]):
            # What is between is normed, and the scores are to differ.
            value = 1.4 / inputs**0.5 * noise
        elif any(part in name for part in ["q_proj", "k_proj", "qkv_proj", "c_attn", "query_key_value"]):
            value = 1.0 / inputs**0.5 * noise
        elif "experts" in name:
            value = 1.2 / inputs**0.5 * noise
        elif name.endswith(("mlp.gate.weight", "mlp.router.weight")):
            # Routers that are sure: which experts are chosen must not hang on rounding.
            value = 3.0 / inputs**0.5 * noise
        else:
            value = 0.7 / inputs**0.5 * noise
        # What fits both formats reads the same through either.
        weight.copy_(value.to(torch.bfloat16).to(torch.float16 if dtype == "float16" else torch.bfloat16))


    for name, factor in model.named_buffers():
        if name.endswith("layer_scalar"):
            factor.copy_((0.8 + 0.2 * torch.rand(factor.shape, generator=generator)).to(torch.bfloat16))
    # What counts for the choice of experts is no parameter, and stays fp32.
    for bias in choice_biases(model).values():
        bias.copy_(0.4 * torch.randn(bias.shape, generator=generator))


def choice_biases(model) -> dict:
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")}


def without_norm(model) -> float:
    """The weight that a norm has no effect with: Gemma and Nemotron store it less one."""
    return 0.0 if model.config.model_type.startswith(("gemma", "nemotron", "qwen3_next", "qwen3_5")) and not model.config.model_type.startswith(("nemotron_h", "gemma4")) else 1.0


def nmse(found, expected) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).square().sum() / expected.square().sum()).item()


def load(folder, dtype=torch.float32, config=None):
    config = config or AutoConfig.from_pretrained(folder)
    kind = AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM
    model = kind.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="eager").eval()
    for weight in model.parameters() if getattr(config, "quantization_config", None) else []:
        # What it widens from blocks is bf16.
        weight.data = weight.data.to(dtype)
    return model


@torch.no_grad()
def logits_of(folder, tokens, dtype=torch.float32, config=None):
    return load(folder, dtype, config)(tokens[None].long()).logits[0].float()


@torch.no_grad()
def smallest_effect(folder, tokens, expected) -> tuple:
    """The one-dimensional weight whose loss (norm to ones, bias to zeros) changes the logits least: (NMSE, name)."""
    model = load(folder)
    effects = []
    for name, weight in [*model.named_parameters(), *choice_biases(model).items()]:
        # Without RoPE a key's bias adds the same to all scores of a query.
        idle = model.config.model_type == "opt" and name.endswith("k_proj.bias")
        # Without a picture what sees has none.
        idle |= any(part in name for part in ["vision_tower", "multi_modal_projector", "visual", "vision_model", "connector", "embed_vision"])
        if (weight.dim() == 1 or name.endswith("_bias")) and not idle:
            kept = weight.clone()
            weight.fill_(0.0 if name.endswith("bias") else -torch.inf if name.endswith("sinks") else without_norm(model))
            effects.append((nmse(model(tokens[None].long()).logits[0], expected), name))
            weight.copy_(kept)
    # A model without such weights has nothing to lose.
    return min(effects, default=(1.0, "nothing"))


def v4_form(config: dict) -> dict:
    """config.json as transformers 4 wrote it: RoPE keys at the top level, `torch_dtype`, no head_dim where it follows."""
    old = copy.deepcopy(config)
    if "text_config" in old:
        # Its inner configuration had no data type of its own.
        if old["model_type"] == "gemma4":
            return dict(sorted((old | dict(torch_dtype=old.pop("dtype"), transformers_version="4.57.1")).items()))
        text = v4_form(old["text_config"] | dict(dtype=None))
        del text["torch_dtype"], text["transformers_version"]
        old |= dict(text_config=text, transformers_version="4.57.1", torch_dtype=old.pop("dtype"))
        if old["model_type"] == "qwen2_5_vl":
            # Its keys stood beside those of the whole.
            own = {key: value for key, value in old.pop("text_config").items() if key not in ["model_type", "layer_types"]}
            old = own | old
        return dict(sorted(old.items()))
    kind = old["model_type"]
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.57.1"
    if kind == "gemma4_text":
        # It has no older form.
        return dict(sorted(old.items()))
    rope = old.pop("rope_parameters", None)
    if kind == "olmo3":
        rope = rope["full_attention"]
    if kind == "gemma3_text":
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    if rope:
        theta, part = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
        old["rotary_emb_base" if kind == "gpt_neox" else "rope_theta"] = theta
        if part is not None:
            old["rotary_pct" if kind == "gpt_neox" else "partial_rotary_factor"] = part
        if "original_max_position_embeddings" in old:
            rope.pop("original_max_position_embeddings", None)
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        if "mrope_section" in rope:
            old["rope_scaling"] = rope | dict(rope_type="default", type="mrope")
    # What older files do not have, where it is the default.
    if kind in ["cohere2", "gemma2", "gemma3_text", "olmo3", "smollm3", "qwen2_moe", "dots1"]:
        old.pop("layer_types")
    if kind == "lfm2":
        kinds = old.pop("layer_types")
        old["full_attn_idxs"] = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
        old |= dict(block_ff_dim=old.pop("intermediate_size"), tie_embedding=old.pop("tie_word_embeddings"))
    if kind == "smollm3":
        old.pop("no_rope_layers")
    if kind == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    if kind in ["dots1", "glm4_moe"]:
        old["n_routed_experts"] = old.pop("num_local_experts", None) or old["n_routed_experts"]
    own_size = ["dots1", "ernie4_5", "exaone4", "hunyuan_v1_dense", "seed_oss", "glm", "glm4", "glm4_moe", "nemotron", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"]
    if "head_dim" in old and kind not in own_size:
        if old["head_dim"] in [None, old["hidden_size"] / old["num_attention_heads"]]:
            del old["head_dim"]
    return dict(sorted(old.items()))


def into_blocks(folder, generator) -> None:
    """Gives a gpt-oss experts of MXFP4: any codes, and scales that make the weights as large as they were."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj")]:
        count, inputs, outputs = tensors.pop(name).shape
        # Codes have a deviation of 3; powers of two are stored with 127 more.
        power = torch.randint(-1, 2, (count, outputs, inputs // 32), generator=generator)
        power += round(math.log2((4.0 if "gate_up" in name else 0.3) / inputs**0.5 / 3.0))
        tensors[f"{name}_blocks"] = torch.randint(256, (count, outputs, inputs // 32, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = (127 + power).to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata=dict(format="pt"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_expected(folder, source, tokens) -> torch.Tensor:
    expected = logits_of(source, tokens)
    save_file({"tokens": tokens.to(torch.int32), "logits": expected.contiguous()}, folder / "expected.safetensors")
    return expected


def row(name, folder, source, tokens, expected) -> str:
    """A table row: sizes, share of positions whose top two differ by more than 0.1, NMSE of transformers in bf16."""
    top = expected.topk(2, dim=-1).values
    clear = (top[:, 0] - top[:, 1] > 0.1).float().mean().item()
    bf16 = nmse(logits_of(source, tokens, torch.bfloat16), expected)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < SIZE_LIMIT, f"{name}: {size} bytes"
    return f"| {name} | {size // 1000} kB | {expected.std():.2f} | {clear:.0%} | {bf16:.1e} |"


def make(name: str) -> str:
    (config_class, model_class), options, dtype, shard, changes = GOLDENS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = model_class(config_class(**options))
    randomise(model, generator, dtype)
    biases = {buffer: bias.clone() for buffer, bias in choice_biases(model).items()}
    model.to(getattr(torch, dtype))
    for buffer, bias in biases.items():
        module, buffer = buffer.rsplit(".", 1)
        setattr(model.get_submodule(module), buffer, bias)
    model.save_pretrained(folder, **(dict(max_shard_size=shard) if shard else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name.endswith("mxfp4"):
        into_blocks(folder, generator)
    tokens = torch.randint(options.get("text_config", options)["vocab_size"], (TOKENS,), generator=generator)
    expected = write_expected(folder, folder, tokens)

    old = v4_form(json.loads((folder / "config.json").read_text()))
    (folder / "config-v4.json").write_text(json.dumps(old, indent=2) + "\n")
    read_old = config_class.from_pretrained(folder / "config-v4.json")
    assert torch.equal(logits_of(folder, tokens, config=read_old), expected), f"{name}: config-v4.json reads otherwise"
    for change in changes:
        effect = nmse(logits_of(folder, tokens, config=config_class(**(options | change))), expected)
        assert effect > 1e-3, f"{name}: {change} changes the logits by {effect} only"
    effect, weight = smallest_effect(folder, tokens, expected)
    assert effect > 5e-4, f"{name}: losing {weight} changes the logits by {effect} only"
    for path in folder.iterdir():
        path.chmod(0o644)
    return row(name, folder, folder, tokens, expected)


@torch.no_grad()
def make_demo() -> str:
    """Logits of the demo model over 24 tokens, and its greedy continuation of "Call me" with the top-two gap a step."""
    from transformers import AutoTokenizer

    folder = HERE / "demo"
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    text = "Call me Ishmael. Some years ago, when the ship lay at anchor, the captain came upon the deck."
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids[:24])
    expected = write_expected(folder, DEMO, tokens)

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()
    prompt = tokenizer("Call me", add_special_tokens=False).input_ids
    ids, gaps = list(prompt), []
    for _ in range(64):
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        gaps.append(round((top.values[0] - top.values[1]).item(), 5))
        ids.append(top.indices[0].item())
    continuation = ids[len(prompt) :]
    record = dict(
        prompt="Call me", prompt_tokens=prompt, tokens=continuation, gaps=gaps, text=tokenizer.decode(continuation)
    )
    (folder / "greedy.json").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    return row("demo", folder, DEMO, tokens, expected)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:] or [*GOLDENS, *(["demo"] if (DEMO / "model.safetensors").exists() else [])]
    unknown = [name for name in names if name not in GOLDENS and name != "demo"]
    if unknown:
        sys.exit(f"no golden is called {', '.join(unknown)}; there are {', '.join([*GOLDENS, 'demo'])}")
    print("| golden | size | logits' deviation | top-two gap > 0.1 | NMSE of transformers in bf16 |\n| --- | --- | --- | --- | --- |")
    for name in names:
        print(make_demo() if name == "demo" else make(name), flush=True)


if __name__ == "__main__":
    main()
