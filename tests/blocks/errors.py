#!/usr/bin/env python3
"""The errors of ggml's quantisers on the values of the test in runtime/src/blocks/encode.rs, which has them as its bounds.

    python3 tests/blocks/errors.py PATH/libggml-base.so        # of a build of llama.cpp with BUILD_SHARED_LIBS; numpy

Prints one line per format: its name and the normalised mean squared error.
"""

import ctypes
import sys

import numpy

COUNT = 1 << 13
DEVIATION = numpy.float32(0.02)
TYPES = {"Q8_0": 8, "Q4_0": 2, "Q5_0": 6, "Q4_1": 3, "Q5_1": 7, "Q4K": 12, "Q5K": 13, "Q6K": 14, "Mxfp4": 39}
MASK = (1 << 64) - 1


def normal() -> numpy.ndarray:
    """Nearly normal numbers: sums of twelve uniform ones, added as f32 one after the other."""
    state, values = 0x2545_F491_4F6C_DD1D, []
    for _ in range(COUNT):
        total = numpy.float32(0)
        for _ in range(12):
            state ^= state << 13 & MASK
            state ^= state >> 7
            state ^= state << 17 & MASK
            total = numpy.float32(total + numpy.float32(numpy.float32(state >> 40) / numpy.float32(1 << 24)))
        values.append(numpy.float32(DEVIATION * numpy.float32(total - numpy.float32(6))))
    return numpy.array(values, numpy.float32)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    ggml, values = ctypes.CDLL(sys.argv[1]), normal()
    pointer = ctypes.POINTER(ctypes.c_float)

    class Traits(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p),
            ("block", ctypes.c_int64),
            ("interleaved", ctypes.c_int64),
            ("size", ctypes.c_size_t),
            ("quantised", ctypes.c_bool),
            ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, pointer, ctypes.c_int64)),
        ]

    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    for name, number in TYPES.items():
        traits = ggml.ggml_get_type_traits(number).contents
        blocks = ctypes.create_string_buffer(COUNT // traits.block * traits.size)
        ggml.ggml_quantize_chunk(number, values.ctypes.data_as(pointer), blocks, 0, COUNT // 256, 256, None)
        back = numpy.zeros(COUNT, numpy.float32)
        traits.to_float(blocks, back.ctypes.data_as(pointer), COUNT)
        error = numpy.square(back.astype(float) - values).sum() / numpy.square(values.astype(float)).sum()
        print(f"{name} {error:.4e}")


if __name__ == "__main__":
    main()
