#!/usr/bin/env python3
"""How far fuserun's logits are from an fp32 reference, and how far those of Hugging Face transformers in bf16 are.

    pip install torch==2.11.0 transformers==5.17.0 tokenizers safetensors numpy jinja2
    python3 tests/goldens/kl.py --model .cache/models/SmolLM2-135M-Instruct.gguf --fuserun target/release/fuserun --device cuda:0

MODEL is SmolLM2's GGUF (read by smollm2.py) or a Hugging Face folder; a GGUF that travels in parts can be given as its parts, in order.
The text is the first tokens of tests/texts/moby-dick-held-out.txt. The reference is transformers in fp32 on the CPU. It is compared with
transformers in bf16 (weights and activations; eager and sdpa attention; on --torch-device) and with `fuserun logits` (prompt path and
--step), by the mean over all positions of KL(reference || other) in nats, the NMSE of the logits and the share of positions whose best
token is the reference's.

A quantised file gives two references: the weights as the file has them, which everything in bf16 rounds, and the weights rounded to
bf16, where only the arithmetic differs. Exit 1 where the larger KL of fuserun's two paths is above RATIO times the smaller KL of
transformers' two, for either reference. No network, no GPU needed.
"""

import argparse
import copy
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import smollm2

TEXT = smollm2.HERE.parent / "texts" / "moby-dick-held-out.txt"
RATIO = 1.1


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        path = whole(arguments.model, scratch)
        model, tokens = read(path, arguments.tokens)
        rounded = in_bf16(model).float()
        references = {"weights rounded to bf16": logits(rounded, tokens, "cpu")}
        if any(not torch.equal(a, b) for a, b in zip(model.parameters(), rounded.parameters())):
            references = {"weights as in the file": logits(model, tokens, "cpu")} | references

        others = {}
        for attention in ("eager", "sdpa"):
            half = in_bf16(model)
            half.set_attn_implementation(attention)
            name = f"transformers bf16, {attention}, {arguments.torch_device}"
            others[name] = logits(half, tokens, arguments.torch_device)
        for flags, what in (([], "prompt path"), (["--step"], "decode path")):
            others[f"fuserun {arguments.device}, {what}"] = fuserun(arguments, path, tokens, flags, scratch)

    print(f"{path.name}, {len(tokens)} tokens of {TEXT.name}; torch {torch.__version__}")
    ratios = [table(name, reference, others) for name, reference in references.items()]
    if max(ratios) > RATIO:
        sys.exit(f"kl.py: fuserun's KL is {max(ratios):.3f} times that of transformers in bf16, more than {RATIO}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="KL of fuserun's logits to transformers in fp32, beside that of transformers in bf16.")
    parser.add_argument("--model", required=True, nargs="+", type=pathlib.Path, metavar="FILE.gguf|PART|FOLDER")
    parser.add_argument("--fuserun", default="target/release/fuserun", help="the program (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="fuserun's device (default: %(default)s)")
    parser.add_argument("--torch-device", default="cuda" if torch.cuda.is_available() else "cpu", help="of transformers in bf16 (default here: %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="how many (default: %(default)s)")
    return parser.parse_args()


def whole(parts, scratch) -> pathlib.Path:
    """The model's one path; several parts are put together in `scratch`."""
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        sys.exit(f"kl.py: there is no {missing[0]}")
    if len(parts) == 1:
        return parts[0]
    path = scratch / "model.gguf"
    with open(path, "wb") as sink:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, sink)
    return path


def read(path, count) -> tuple:
    """The model in fp32 and `count` tokens of the text."""
    text = TEXT.read_text()
    if path.is_dir():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokens = AutoTokenizer.from_pretrained(path).encode(text)
    else:
        gguf = smollm2.Gguf(path)
        model, tokens = smollm2.read_model(gguf), smollm2.read_tokenizer(gguf).encode(text).ids
    if len(tokens) < count:
        sys.exit(f"kl.py: {TEXT.name} has {len(tokens)} tokens, fewer than {count}")
    return model, tokens[:count]


def in_bf16(model):
    return copy.deepcopy(model).to(torch.bfloat16)


@torch.no_grad()
def logits(model, tokens, device) -> torch.Tensor:
    """Logits of all positions from one call, as f32 on the CPU."""
    return model.to(device)(torch.tensor([tokens], device=device)).logits[0].float().cpu()


def fuserun(arguments, path, tokens, flags, scratch) -> torch.Tensor:
    out = scratch / "logits.safetensors"
    command = [arguments.fuserun, "logits", "-m", str(path), "--device", arguments.device, "-o", str(out), *flags]
    try:
        done = subprocess.run([*command, "--tokens", ",".join(map(str, tokens))], stderr=subprocess.PIPE, text=True)
    except OSError as error:
        sys.exit(f"kl.py: cannot run {arguments.fuserun}: {error.strerror}; build it (cargo build --release) or name it with --fuserun")
    if done.returncode != 0:
        sys.exit(f"kl.py: {' '.join(command)} failed:\n{done.stderr}")
    return load_file(out)["logits"]


def table(name, reference, others) -> float:
    """Prints each one's distance from the reference; returns fuserun's largest KL over transformers' smallest."""
    print(f"\nreference: transformers fp32, {name}")
    print("| logits of | mean KL | NMSE | same best token |\n| --- | --- | --- | --- |")
    found = {}
    for other, values in others.items():
        values = values[:, : reference.shape[1]].double()
        target, wide = reference.double().log_softmax(-1), reference.double()
        found[other] = (target.exp() * (target - values.log_softmax(-1))).sum(-1).mean().item()
        nmse = ((values - wide).square().sum() / wide.square().sum()).item()
        same = (values.argmax(-1) == wide.argmax(-1)).double().mean().item()
        print(f"| {other} | {found[other]:.3e} | {nmse:.2e} | {same:.1%} |")
    ours = max(kl for other, kl in found.items() if other.startswith("fuserun"))
    theirs = min(kl for other, kl in found.items() if not other.startswith("fuserun"))
    print(f"ratio of fuserun's larger to transformers' smaller KL: {ours / theirs:.3f} (bound {RATIO})")
    return ours / theirs


if __name__ == "__main__":
    main()
