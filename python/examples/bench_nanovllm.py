"""Tokens per second of many prompts of random lengths, by nano-vllm's calls: 256 prompts of 100 to 1024 random tokens, with answers as long.

    python bench_nanovllm.py Qwen/Qwen3-0.6B
"""

import argparse
import random
import time

from nanovllm import LLM, SamplingParams


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder or a .gguf file")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--shortest", type=int, default=100, help="tokens of a prompt, and of an answer, at least")
    parser.add_argument("--longest-prompt", type=int, default=1024)
    parser.add_argument("--longest-answer", type=int, default=1024)
    parser.add_argument("--largest-token", type=int, default=10000, help="of prompts")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, help="prompts side by side; as many as the device has where it is not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    more = {} if args.max_num_seqs is None else {"max_num_seqs": args.max_num_seqs}
    llm = LLM(args.model, enforce_eager=False, max_model_len=args.max_model_len, device=args.device, **more)
    prompts = [
        [draw.randint(0, args.largest_token) for _ in range(draw.randint(args.shortest, args.longest_prompt))] for _ in range(args.prompts)
    ]
    params = [
        SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=draw.randint(args.shortest, args.longest_answer))
        for _ in range(args.prompts)
    ]
    llm.generate(["Benchmark: "], SamplingParams())
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took = time.perf_counter() - began
    wanted, came = sum(param.max_tokens for param in params), sum(len(output["token_ids"]) for output in outputs)
    if came != wanted:
        raise SystemExit(f"{came} tokens came, not {wanted}: give a longer --max-model-len")
    read = sum(map(len, prompts))
    print(f"{llm.device}, {llm.max_num_seqs} slots: {read} tokens read and {came} tokens written in {took:.2f} s: {came / took:.1f} tok/s")


if __name__ == "__main__":
    main()
