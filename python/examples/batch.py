"""Goes on with each line of a file, and writes an object in JSON per line, in their order. A bar shows how far it is.

    python batch.py prompts.txt answers.jsonl --model Qwen/Qwen3-0.6B --chat
"""

import argparse
import itertools
import json
import sys

from fuserun import LLM, SamplingParams

# So many prompts are in the queue at once: what has been answered is on disk if this is broken off.
PART = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", help="a file with a prompt per line")
    parser.add_argument("answers", help="the file to be written")
    parser.add_argument("--model", help="the demo model where none is given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--chat", action="store_true", help="each line is a message to answer")
    args = parser.parse_args()
    with open(args.prompts) as file:
        prompts = [line.rstrip("\n") for line in file if line.strip()]
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    with LLM(args.model, device=args.device) as llm, open(args.answers, "w") as answers, bar(len(prompts)) as progress:
        for part in iter(lambda left=iter(prompts): list(itertools.islice(left, PART)), []):
            if args.chat:
                outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in part], params, use_tqdm=False)
            else:
                outputs = llm.generate(part, params, use_tqdm=False)
            for prompt, output in zip(part, outputs):
                answer = output.outputs[0]
                object = {"prompt": prompt, "text": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.token_ids)}
                answers.write(json.dumps(object, ensure_ascii=False) + "\n")
                progress.update(1)
            answers.flush()


def bar(total):
    """A bar of tqdm's, or, without that package, nothing."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        import contextlib
        import types

        print("pip install tqdm: it shows how far this is", file=sys.stderr)
        return contextlib.nullcontext(types.SimpleNamespace(update=lambda count: None))
    return tqdm(total=total, unit="prompt", desc="Answering")


if __name__ == "__main__":
    main()
