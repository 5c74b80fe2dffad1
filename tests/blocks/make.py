"""Random blocks of every quantised GGUF type and the values that the gguf package gives them.

    pip install gguf==0.19.0 numpy safetensors
    python3 tests/blocks/make.py

Writes gguf.safetensors beside itself: per type NAME "NAME.blocks" u8 [count, bytes] and "NAME.values" f32 [count, values]. The bytes are uniform, so
every integer, minimum and table entry comes up; the scales of a type run through those of SCALES.
"""
from pathlib import Path

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from safetensors.numpy import save_file

# Halves: 0, -0, the smallest and the largest subnormal, the smallest normal, usual ones of both signs, the largest.
SCALES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x2E66, 0xA123, 0x7BFF]
# Where a type's halves lie; MXFP4 has a byte.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82],
    Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0],
    Type.MXFP4: [],
}
EXPONENTS = [0, 1, 2, 100, 127, 128, 200, 250]


def main():
    tensors = {}
    for number, (kind, halves) in enumerate(HALVES.items()):
        values, size = GGML_QUANT_SIZES[kind]
        count = 8 if values == 32 else 3
        blocks = np.random.default_rng(number).integers(0, 256, (count, size), dtype=np.uint8)
        for row in range(count):
            if kind == Type.MXFP4:
                blocks[row, 0] = EXPONENTS[row]
            for which, at in enumerate(halves):
                scale = SCALES[(row * 3 + which * 5 + number) % len(SCALES)]
                blocks[row, at:at + 2] = [scale & 255, scale >> 8]
        name = kind.name.lower()
        decoded = quants.dequantize(blocks, kind).astype(np.float32).reshape(count, values)
        assert np.isfinite(decoded).all(), name
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = decoded
    save_file(tensors, Path(__file__).parent / "gguf.safetensors")


if __name__ == "__main__":
    main()
