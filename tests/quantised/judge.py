#!/usr/bin/env python3
"""Compares the values of the folders of make.py with what compressed-tensors decompresses from their files.

    pip install numpy torch==2.15.0 compressed-tensors==0.20.1
    python3 tests/quantised/judge.py

It decompresses to the type of the scales, so they are widened to f32 first: only then are values those of the formulas. The reordered checkpoint is not
compared: this release ignores `weight_g_idx`, which older ones wrote.
"""

import hashlib
import json
import pathlib

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parent


def main():
    compared = 0
    for folder in sorted(path.parent for path in HERE.glob("*/values.json")):
        quantisation = json.loads((folder / "config.json").read_text())["quantization_config"]
        if quantisation["quant_method"] != "compressed-tensors" or folder.name == "int4-reordered":
            continue
        tensors = load_file(folder / "model.safetensors")
        compressor = BaseCompressor.get_value_from_registry(quantisation["format"])
        scheme = QuantizationScheme(**quantisation["config_groups"]["group_0"])
        for name, digest in json.loads((folder / "values.json").read_text()).items():
            module = name.removesuffix("weight")
            own = {key.removeprefix(module): tensor for key, tensor in tensors.items() if key.startswith(module)}
            scale = own["weight_scale"]
            if scale.dtype in (torch.bfloat16, torch.float16):
                own["weight_scale"] = scale.float()
            if "weight_global_scale" in own:
                # Its decompressor rounds to bf16.
                packed, factor = own["weight_packed"], own["weight_global_scale"]
                floats = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], torch.float32)
                values = dequantize(floats, scale.float(), args=scheme.weights, global_scale=factor, dtype=torch.float32)
            else:
                values = compressor.decompress(own, scheme)["weight"].float()
            # GGUF's blocks, which MXFP4 is read as, have no negative zero.
            values = values + 0.0 if folder.name == "mxfp4" else values
            assert hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest() == digest, (folder.name, name)
            compared += 1
        print(f"{folder.name}: the same")
    print(f"{compared} weights")


if __name__ == "__main__":
    main()
