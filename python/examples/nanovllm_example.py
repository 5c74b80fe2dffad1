"""The calls that a script for nano-vllm makes: a tokenizer, a chat template, prompts, and texts out of dicts."""

import argparse

from nanovllm import LLM, SamplingParams


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a Hugging Face folder or a .gguf file")
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    llm = LLM(args.model, enforce_eager=True, tensor_parallel_size=1)
    tokenizer = llm.tokenizer
    questions = ["introduce yourself", "list all prime numbers within 100"]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
        for question in questions
    ]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.6, max_tokens=args.max_tokens))
    for prompt, output in zip(prompts, outputs):
        print(f"\nPrompt: {prompt!r}\nCompletion: {output['text']!r}")


if __name__ == "__main__":
    main()
