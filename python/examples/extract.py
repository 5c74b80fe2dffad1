"""Takes facts out of texts, as JSON that a schema describes: whatever the model, what comes can be parsed.

    python extract.py --model Qwen/Qwen3-0.6B "Herman Melville wrote Moby-Dick in 1851."
"""

import argparse
import json
import sys

from fuserun import LLM, SamplingParams, StructuredOutputsParams

BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "author": {"type": "string", "maxLength": 40},
        "year": {"type": "integer", "minimum": 1450, "maximum": 2100},
        "kind": {"enum": ["novel", "poetry", "drama", "other"]},
    },
    "required": ["title", "author", "year", "kind"],
    "additionalProperties": False,
}
TASK = "Which book is this about? Answer with title, author, year and kind, as JSON.\n\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", help="the demo model where none is given")
    # Answers are held to a schema on the CPU.
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    params = SamplingParams(temperature=0, max_tokens=200, structured_outputs=StructuredOutputsParams(json=BOOK))
    with LLM(args.model, device=args.device) as llm:
        outputs = llm.chat([[{"role": "user", "content": TASK + text}] for text in args.texts], params, use_tqdm=sys.stderr.isatty())
    for output in outputs:
        answer = output.outputs[0]
        if answer.finish_reason == "length":
            sys.exit(f"an answer was cut off after {len(answer.token_ids)} tokens: give it more")
        print(json.dumps(json.loads(answer.text), ensure_ascii=False))


if __name__ == "__main__":
    main()
