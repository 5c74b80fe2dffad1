#!/usr/bin/env python3
"""What each format costs on real text: fuserun's logits with `--weights FORMAT` beside those of the same checkpoint in 16 bits.

    pip install numpy==2.4.1
    python3 tests/quantised/cost.py --model models/demo --fuserun target/release/fuserun
    pip install torch==2.11.0 transformers==5.17.0 tokenizers safetensors jinja2
    python3 tests/quantised/cost.py --model .cache/models/SmolLM2-135M-Instruct.gguf --fuserun target/release/fuserun

MODEL is a Hugging Face folder with weights of 16 bits, or SmolLM2's GGUF, whose values are written as f16 first (read by
tests/goldens/smollm2.py, which needs the packages of the third line). The text is the first tokens of
tests/texts/moby-dick-held-out.txt. Per format: the mean and the 99th percentile over all positions of KL(16 bits || format) in nats,
the NMSE of the logits, the share of positions whose best token is the same, and what the next token of the text costs more, in nats.
`as written` is a folder that `fuserun quantize` writes.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parent / "texts" / "moby-dick-held-out.txt"
FORMATS = "q8_0,q6_k,q5_k,q4_k,q4_0,mxfp4,fp8,int8,int4"
WRITTEN = ("fp8", "int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description="What each format costs on real text.")
    parser.add_argument("--model", required=True, type=pathlib.Path, metavar="FOLDER|FILE.gguf")
    parser.add_argument("--fuserun", default="target/release/fuserun", help="the program (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="fuserun's device (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="how many (default: %(default)s)")
    parser.add_argument("--formats", default=FORMATS, help="what weights become (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        text = run(arguments, "tokenize", "-m", arguments.model, TEXT.read_text()).split(",")
        tokens = [int(token) for token in text][: arguments.tokens]
        model = arguments.model if arguments.model.is_dir() else widened(arguments.model, scratch / "widened")
        reference = log_softmax(logits(arguments, model, tokens, scratch, []))
        print(f"{arguments.model.name}, {len(tokens)} tokens of {TEXT.name}, on {arguments.device}\n")
        print("| weights | mean KL | 99th percentile | NMSE of logits | same best token | nats per token |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in arguments.formats.split(","):
            row(name, reference, logits(arguments, model, tokens, scratch, ["--weights", name]), tokens)
        for name in WRITTEN:
            folder = scratch / name
            run(arguments, "quantize", "-m", model, "--to", name, "-o", folder)
            row(f"{name}, as written", reference, logits(arguments, folder, tokens, scratch, []), tokens)


def run(arguments, *command) -> str:
    command = [arguments.fuserun, *map(str, command)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"cost.py: cannot run {arguments.fuserun}: {error.strerror}; build it (cargo build --release) or name it with --fuserun")
    if done.returncode != 0:
        sys.exit(f"cost.py: {' '.join(command)[:200]} failed:\n{done.stderr}")
    return done.stdout


def logits(arguments, model, tokens, scratch, flags) -> numpy.ndarray:
    out = scratch / "logits.safetensors"
    ids = ",".join(map(str, tokens))
    run(arguments, "logits", "-m", model, "--device", arguments.device, "-o", out, "--tokens", ids, *flags)
    data = out.read_bytes()
    header = int.from_bytes(data[:8], "little")
    shape = json.loads(data[8 : 8 + header])["logits"]["shape"]
    return numpy.frombuffer(data, "<f4", offset=8 + header).reshape(shape).astype(numpy.float64)


def log_softmax(values) -> tuple:
    shifted = values - values.max(axis=1, keepdims=True)
    return values, shifted - numpy.log(numpy.exp(shifted).sum(axis=1, keepdims=True))


def row(name, reference, values, tokens) -> None:
    wide, target = reference
    _, found = log_softmax(values)
    kl = (numpy.exp(target) * (target - found)).sum(axis=1)
    nmse = numpy.square(values - wide).sum() / numpy.square(wide).sum()
    same = (values.argmax(axis=1) == wide.argmax(axis=1)).mean()
    at, following = numpy.arange(len(tokens) - 1), numpy.array(tokens[1:])
    more = (target[at, following] - found[at, following]).mean()
    print(f"| {name} | {kl.mean():.2e} | {numpy.quantile(kl, 0.99):.2e} | {nmse:.1e} | {same:.1%} | {more:+.4f} |", flush=True)


def widened(gguf, folder) -> pathlib.Path:
    """The values of SmolLM2's file as a folder in f16."""
    sys.path.insert(0, str(HERE.parent / "goldens"))
    import smollm2

    smollm2.read_model(smollm2.Gguf(gguf)).half().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
