"""Cells of a notebook: texts that are shown as they come. Editors with notebooks run the cells one by one, Python runs them all."""

# %% A model: the demo model, or the one that FUSE_MODEL names
import asyncio
import os

from fuserun import LLM, AsyncLLM, SamplingParams

llm = LLM(os.environ.get("FUSE_MODEL"), device=os.environ.get("FUSE_DEVICE", "auto"))
llm

# %% Each piece is a text: it is printed as it comes, and Ctrl-C or the notebook's stop button ends it
for piece in llm.stream("Call me", SamplingParams(temperature=0, max_tokens=24)):
    print(piece, end="", flush=True)
print()

# %% How sure was it? Pieces and results know their tokens
output = llm.generate("The white whale", SamplingParams(temperature=0, max_tokens=6, logprobs=3), use_tqdm=False)[0]
for token, scores in zip(output.token_ids, output.outputs[0].logprobs):
    others = ", ".join(f"{score.decoded_token!r} {score.logprob:.2f}" for score in scores.values())
    print(f"{llm.decode(token)!r:12} {others}")

# %% Three at once, in an event loop: in a notebook `await three()`
model = AsyncLLM(llm)


async def show(name, prompt):
    text = ""
    async for piece in model.stream(prompt, SamplingParams(temperature=0, max_tokens=12)):
        text += piece
    print(f"{name}: {text!r}")


async def three():
    await asyncio.gather(*(show(name, f"{name} said") for name in ("Ahab", "Starbuck", "Queequeg")))


if __name__ == "__main__":
    asyncio.run(three())

# %% The memory is given back
llm.exit()
