#!/usr/bin/env python3
"""Makes the goldens of SmolLM2-135M-Instruct from its GGUF file, read by code of this script's own.

    pip install torch==2.11.0 transformers==5.17.0 tokenizers safetensors numpy jinja2
    python3 tests/goldens/smollm2.py .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf

Two folders: `smollm2` from the dequantised weights as they are, `smollm2-bf16` from the same weights rounded to bf16. Each has
`expected.safetensors` (one paragraph of prose, see README.md) and `greedy.json` (64 tokens after each of 8 prompts, with the
reference's top-two gap a step). Minutes on two cores, no GPU.
"""

import json
import math
import pathlib
import struct
import sys

import jinja2
import numpy
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
PROSE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice she had "
    "peeped into the book her sister was reading, but it had no pictures or conversations in it."
)
# Prompts whose continuations the model is sure of for long: a comparison ends where the reference's top two are close.
PLAIN = [
    "The capital of France is",
    "1, 2, 3, 4, 5, 6,",
    "We the People of the United States, in Order to form",
    "The months of the year are January, February,",
    "for i in range(10):\n    print(",
    "The three laws of thermodynamics are",
]
CHAT = ["What is the capital of France?", "Count from 1 to 20."]
STEPS = 64
COLUMN_STRIDE = 128
SIZE_LIMIT = 500_000


class Gguf:
    """A GGUF v3 file: `metadata` by key, `tensors` as {name: (shape, type, offset)}; F32, Q8_0 and Q4_1 are read."""

    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        self.at = 0
        magic, version, tensor_count, metadata_count = self.take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            sys.exit(f"{path}: not a GGUF file of version 3")
        self.metadata = {}
        for _ in range(metadata_count):
            key = self.string()
            self.metadata[key] = self.value(self.take("<I")[0])
        self.tensors = {}
        for _ in range(tensor_count):
            name = self.string()
            shape = self.take(f"<{self.take('<I')[0]}Q")[::-1]
            kind, offset = self.take("<IQ")
            self.tensors[name] = (shape, kind, offset)
        alignment = self.metadata.get("general.alignment", 32)
        self.base = -(-self.at // alignment) * alignment

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        length = self.take("<Q")[0]
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            kind, count = self.take("<IQ")
            return [self.value(kind) for _ in range(count)]
        return self.take("<" + self.SCALARS[kind])[0]

    def tensor(self, name):
        """The tensor in f32. A block holds 32 values: Q8_0 = d q, Q4_1 = d q + m with low nibbles first; d and m are f16."""
        shape, kind, offset = self.tensors[name]
        count, start = math.prod(shape), self.base + offset
        if kind == 0:
            return numpy.frombuffer(self.data, "<f4", count, start).reshape(shape)
        layout = {
            3: numpy.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
            8: numpy.dtype([("d", "<f2"), ("q", "i1", 32)]),
        }[kind]
        blocks = numpy.frombuffer(self.data, layout, count // 32, start)
        q = blocks["q"] if kind == 8 else numpy.concatenate((blocks["q"] & 15, blocks["q"] >> 4), axis=1)
        values = blocks["d"].astype("f4")[:, None] * q.astype("f4")
        if kind == 3:
            values += blocks["m"].astype("f4")[:, None]
        return values.reshape(shape)


def read_model(gguf) -> LlamaForCausalLM:
    """The checkpoint in fp32, with the rows of q and k put back from interleaved to half-split RoPE."""
    of = lambda key: gguf.metadata[f"llama.{key}"]
    config = LlamaConfig(
        vocab_size=gguf.tensors["token_embd.weight"][0][0],
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=of("context_length"),
        rope_parameters=dict(rope_type="default", rope_theta=of("rope.freq_base")),
        tie_word_embeddings="output.weight" not in gguf.tensors,
        attn_implementation="eager",
    )
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    weights = {}
    for ours, theirs in names.items():
        value = gguf.tensor(theirs)
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        heads = next((count for part, count in heads.items() if part in ours), None)
        if heads:
            rows, columns = value.shape
            value = value.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        weights[ours] = torch.from_numpy(value.copy())
    assert set(names.values()) == set(gguf.tensors), "a tensor of the file was not read"
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model


def read_tokenizer(gguf) -> Tokenizer:
    """Byte-level BPE of the pre-tokenizer "smollm": digits one by one, then GPT-2's pattern; control tokens whole."""
    assert gguf.metadata["tokenizer.ggml.pre"] == "smollm"
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in gguf.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = gguf.metadata["tokenizer.ggml.token_type"]
    control = [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens(control)
    return tokenizer


@torch.no_grad()
def write_expected(model, tokens, folder) -> torch.Tensor:
    """Full logits of two positions, every 128th column of all, and each position's argmax, gap and log-sum-exp."""
    logits = model(torch.tensor([tokens])).logits[0]
    top = logits.topk(2, dim=-1)
    positions = torch.tensor([len(tokens) // 2, len(tokens) - 1])
    save_file(
        {
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "positions": positions.to(torch.int32),
            "logits": logits[positions].contiguous(),
            "columns": logits[:, ::COLUMN_STRIDE].contiguous(),
            "argmax": top.indices[:, 0].to(torch.int32).contiguous(),
            "gap": (top.values[:, 0] - top.values[:, 1]).contiguous(),
            "log_sum_exp": logits.logsumexp(-1).contiguous(),
        },
        folder / "expected.safetensors",
    )
    return logits


@torch.no_grad()
def greedy(model, tokens) -> tuple:
    """STEPS greedy tokens after the prompt, past any end of text, and the gap of the top two logits at each."""
    past, fed, found, gaps = None, tokens, [], []
    for _ in range(STEPS):
        answer = model(torch.tensor([fed]), past_key_values=past, use_cache=True)
        past = answer.past_key_values
        top = answer.logits[0, -1].topk(2)
        found.append(top.indices[0].item())
        gaps.append(round((top.values[0] - top.values[1]).item(), 5))
        fed = [found[-1]]
    return found, gaps


def write_greedy(model, tokenizer, prompts, folder) -> list:
    records = []
    for prompt in prompts:
        tokens, gaps = greedy(model, prompt["prompt_tokens"])
        records.append(prompt | dict(tokens=tokens, gaps=gaps, text=tokenizer.decode(tokens, skip_special_tokens=False)))
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "greedy.json").write_text(f"[\n{lines}\n]\n")
    return records


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: smollm2.py FILE.gguf")
    gguf = Gguf(sys.argv[1])
    model, tokenizer = read_model(gguf), read_tokenizer(gguf)
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(gguf.metadata["tokenizer.chat_template"])
    prompts = [dict(prompt=text, chat=None) for text in PLAIN]
    for text in CHAT:
        messages = [dict(role="user", content=text)]
        prompts.append(dict(prompt=template.render(messages=messages, add_generation_prompt=True), chat=messages))
    for prompt in prompts:
        prompt["prompt_tokens"] = tokenizer.encode(prompt["prompt"]).ids
        assert tokenizer.decode(prompt["prompt_tokens"], skip_special_tokens=False) == prompt["prompt"]
    tokens = tokenizer.encode(PROSE).ids

    results = {}
    for name in ("smollm2", "smollm2-bf16"):
        if name == "smollm2-bf16":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.to(torch.bfloat16))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        logits = write_expected(model, tokens, folder)
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).item()
        print(f"{name}: {len(tokens)} tokens of prose, perplexity {math.exp(loss):.3f}")
        assert abs(math.exp(loss) - 35.31) < 0.2, "the weights are misread: right is 35.31, and 106 with q and k as the file has them"
        results[name] = logits, write_greedy(model, tokenizer, prompts, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size < SIZE_LIMIT, f"{name}: {size} bytes"

    exact, rounded = results["smollm2"], results["smollm2-bf16"]
    error = (rounded[0] - exact[0]).double()
    print(f"bf16 weights against exact ones: NMSE {(error.square().sum() / exact[0].double().square().sum()).item():.2e}")
    print(f"largest difference of a logit {error.abs().max():.3f}")
    for a, b in zip(exact[1], rounded[1]):
        differ = [i for i in range(STEPS) if a["tokens"][i] != b["tokens"][i]]
        close = [i for i in range(STEPS) if a["gaps"][i] < 0.1]
        first = f"first differs at {differ[0]}, gap {a['gaps'][differ[0]]}" if differ else "agrees"
        print(f"{len(a['prompt_tokens'])} tokens, {first}, gap below 0.1 first at {close[:1]}: {a['text'][:70]!r}")


if __name__ == "__main__":
    main()
