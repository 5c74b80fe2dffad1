#!/usr/bin/env python3
"""Tiny checkpoints in every way of quantising safetensors that is read, with digests of the values that each weight stands for.

    pip install numpy
    python3 tests/quantised/make.py             # writes the folders beside it

A folder each: config.json, model.safetensors, and values.json with the SHA-256 of each quantised weight's values, as f32, little-endian, row after row. The
values are the published formulas, in f32, rounded once: a float times its scale, or an integer less its zero point times the scale.
"""

import hashlib
import json
import pathlib
import struct
import sys
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY = 24
DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1", "F8_E4M3": "u1", "BF16": "<u2"}

E4M3 = np.array(
    [
        (-1 if code & 128 else 1)
        * (2.0 ** ((code >> 3 & 15) - 7) * (1 + (code & 7) / 8) if code >> 3 & 15 else 2.0**-9 * (code & 7))
        for code in range(256)
    ],
    np.float32,
)
E2M1 = np.array([sign * size for sign in (1.0, -1.0) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


class Folder:
    """One checkpoint in the making."""

    def __init__(self, name, quantisation, hidden=32, intermediate=32):
        self.name, self.rng = name, np.random.default_rng(zlib.crc32(name.encode()))
        self.tensors, self.values = {}, {}
        self.hidden, self.intermediate = hidden, intermediate
        self.config = dict(
            architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden, intermediate_size=intermediate,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=hidden // 2, vocab_size=VOCABULARY,
            rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=64, tie_word_embeddings=False,
            hidden_act="silu", dtype="bfloat16", quantization_config=quantisation,
        )
        for tensor in ("model.embed_tokens", "lm_head"):
            self.plain(f"{tensor}.weight", (VOCABULARY, hidden), 0.0, 0.5)
        for norm in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
            self.plain(f"{norm}.weight", (hidden,), 1.0, 0.2)

    def modules(self):
        """The name, rows and columns of each projection."""
        hidden, inner = self.hidden, self.intermediate
        attention = dict(q=(hidden, hidden), k=(hidden // 2, hidden), v=(hidden // 2, hidden), o=(hidden, hidden))
        mlp = dict(gate=(inner, hidden), up=(inner, hidden), down=(hidden, inner))
        for block, projections in (("self_attn", attention), ("mlp", mlp)):
            for projection, (rows, columns) in projections.items():
                yield f"model.layers.0.{block}.{projection}_proj", rows, columns

    def put(self, name, dtype, array):
        array = np.ascontiguousarray(array)
        assert array.dtype == np.dtype(DTYPES[dtype]), (name, array.dtype)
        self.tensors[name] = (dtype, list(array.shape), array.tobytes())

    def plain(self, name, shape, mean, deviation):
        self.put(name, "BF16", bf16(mean + deviation * self.rng.standard_normal(shape)))

    def codes(self, shape, count):
        return self.rng.integers(0, count, shape, dtype=np.int64)

    def scales(self, name, dtype, shape, size):
        """Writes random scales near a size and gives them as f32."""
        scales = (size * (0.5 + self.rng.random(shape))).astype(np.float32)
        if dtype == "BF16":
            self.put(name, dtype, bf16(scales))
            return from_bf16(bf16(scales))
        stored = scales.astype(DTYPES[dtype])
        self.put(name, dtype, stored)
        return stored.astype(np.float32)

    def done(self, module, values):
        self.values[f"{module}.weight"] = np.ascontiguousarray(values, np.float32)

    def write(self):
        folder = HERE / self.name
        folder.mkdir(exist_ok=True)
        digests = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in sorted(self.values.items())}
        (folder / "config.json").write_text(json.dumps(self.config, indent=1) + "\n")
        (folder / "values.json").write_text(json.dumps(digests, indent=1) + "\n")
        header, data = {}, b""
        for name, (dtype, shape, stored) in sorted(self.tensors.items()):
            header[name] = dict(dtype=dtype, shape=shape, data_offsets=[len(data), len(data) + len(stored)])
            data += stored
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def bf16(values):
    """The upper half of each f32."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def spread(grid, rows, columns, shape):
    """Each scale at all the places that share it."""
    return np.repeat(np.repeat(grid, rows, 0), columns, 1)[: shape[0], : shape[1]]


def pack(codes, bits, axis):
    """Unsigned codes in words of 32 bits along an axis, the lowest first."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint64)
    per = 32 // bits
    words = (codes.reshape(*codes.shape[:-1], -1, per) << (bits * np.arange(per, dtype=np.uint64))).sum(-1, dtype=np.uint64)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


def nibbles(codes):
    """Two to a byte, the lower first."""
    return (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)


def fp8_codes(folder, shape):
    """Any float of 8 bits but the two that are not numbers."""
    codes = folder.codes(shape, 254)
    return (codes + (codes >= 127)).astype(np.uint8)


def fp8(folder, module, shape, end, dtype, block):
    """`block`: the rows and columns that share a scale; the scales have the shape that the method gives them."""
    codes = fp8_codes(folder, shape)
    folder.put(f"{module}.weight", "F8_E4M3", codes)
    if block is None:
        scale = folder.scales(f"{module}.{end}", dtype, (), 1e-3)
    else:
        grid = [-(-size // of) for size, of in zip(shape, block)]
        scale = spread(folder.scales(f"{module}.{end}", dtype, grid, 1e-3), *block, shape)
    folder.done(module, E4M3[codes] * scale)


def transformers_fp8(name, block):
    folder = Folder(name, dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=block))
    for module, *shape in folder.modules():
        fp8(folder, module, shape, "weight_scale_inv", "F32", block)
    return folder


def groups(bits=4, kind="int", size=None, **more):
    """`config_groups` of compressed-tensors."""
    strategy = "group" if size else "channel"
    weights = dict(num_bits=bits, type=kind, symmetric=True, strategy=strategy, group_size=size, dynamic=False) | more
    return dict(group_0=dict(targets=["Linear"], weights=weights, input_activations=None, output_activations=None))


def compressed(name, form, sizes, **group):
    quantisation = dict(
        quant_method="compressed-tensors", format=form, quantization_status="compressed", ignore=["lm_head"],
        kv_cache_scheme=None, config_groups=groups(**group),
    )
    return Folder(name, quantisation, *sizes)


def float_rows(name):
    folder = compressed(name, "float-quantized", (32, 32), bits=8, kind="float")
    for module, *shape in folder.modules():
        fp8(folder, module, shape, "weight_scale", "BF16", [1, shape[1]])
    return folder


def float_blocks(name):
    folder = compressed(name, "float-quantized", (32, 64), bits=8, kind="float", strategy="block", block_structure="16x32")
    for module, *shape in folder.modules():
        fp8(folder, module, shape, "weight_scale", "BF16", [16, 32])
    return folder


def float_groups(name):
    """`mxfp8`: 32 columns share a power of two."""
    folder = compressed(name, "mxfp8-quantized", (32, 64), bits=8, kind="float", size=32)
    for module, rows, columns in folder.modules():
        codes, exponents = fp8_codes(folder, (rows, columns)), folder.rng.integers(116, 120, (rows, columns // 32), np.uint8)
        folder.put(f"{module}.weight", "F8_E4M3", codes)
        folder.put(f"{module}.weight_scale", "U8", exponents)
        folder.done(module, E4M3[codes] * np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).repeat(32, 1))
    return folder


def modelopt_fp8(name):
    folder = Folder(name, dict(quant_method="modelopt", quant_algo="FP8"))
    for module, *shape in folder.modules():
        fp8(folder, module, shape, "weight_scale", "F32", None)
        folder.put(f"{module}.input_scale", "F32", np.float32(0.01))
    return folder


def bytes_of_integers(name, asymmetric=False, dtype="BF16"):
    folder = compressed(name, "int-quantized", (32, 32), bits=8, symmetric=not asymmetric)
    for module, *shape in folder.modules():
        codes = (folder.codes(shape, 256) - 128).astype(np.int8)
        folder.put(f"{module}.weight", "I8", codes)
        scale = folder.scales(f"{module}.weight_scale", dtype, (shape[0], 1), 2e-3)
        zero = np.zeros((shape[0], 1), np.int8)
        if asymmetric:
            zero = (folder.codes((shape[0], 1), 256) - 128).astype(np.int8)
            folder.put(f"{module}.weight_zero_point", "I8", zero)
        folder.done(module, (codes.astype(np.float32) - zero) * scale)
    return folder


def packed(name, bits, size, dtype, asymmetric=False, reordered=False, intermediate=32):
    """Integers in words; `size` columns share a scale, or all."""
    folder = compressed(name, "pack-quantized", (32, intermediate), bits=bits, size=size, symmetric=not asymmetric)
    middle = 1 << (bits - 1)
    for module, rows, columns in folder.modules():
        codes = folder.codes((rows, columns), 1 << bits)
        folder.put(f"{module}.weight_packed", "I32", pack(codes, bits, 1))
        folder.put(f"{module}.weight_shape", "I64", np.array([rows, columns], np.int64))
        own = min(size or columns, columns)
        count = columns // own
        scale = folder.scales(f"{module}.weight_scale", dtype, (rows, count), 0.3 / (1 << bits))
        zero = np.full((rows, count), middle)
        if asymmetric:
            zero = folder.codes((rows, count), 1 << bits)
            folder.put(f"{module}.weight_zero_point", "I32", pack(zero, bits, 0))
        group = np.arange(columns) // own
        if reordered:
            group = folder.rng.permutation(group)
            folder.put(f"{module}.weight_g_idx", "I32", group.astype(np.int32))
        folder.done(module, (codes - zero[:, group]).astype(np.float32) * scale[:, group])
    return folder


def awq(name, size, intermediate):
    folder = Folder(name, dict(quant_method="awq", bits=4, group_size=size, version="gemm", zero_point=True), 32, intermediate)
    folder.config["dtype"] = "float16"
    for module, rows, columns in folder.modules():
        codes = folder.codes((columns, rows), 16)
        own = min(size, columns)
        zero = folder.codes((columns // own, rows), 16)
        order = np.arange(rows).reshape(-1, 8)[:, AWQ_ORDER].ravel()
        folder.put(f"{module}.qweight", "I32", pack(codes[:, order], 4, 1))
        folder.put(f"{module}.qzeros", "I32", pack(zero[:, order], 4, 1))
        scale = folder.scales(f"{module}.scales", "F16", zero.shape, 0.02)
        group = np.arange(columns) // own
        folder.done(module, ((codes - zero[group]).astype(np.float32) * scale[group]).T)
    return folder


def gptq(name, bits=4, size=32, symmetric=True, reordered=False, version="gptq", intermediate=64, biases=False):
    quantisation = dict(
        quant_method="gptq", bits=bits, group_size=size, desc_act=reordered, sym=symmetric, checkpoint_format=version, lm_head=False
    )
    folder = Folder(name, quantisation, 32, intermediate)
    for module, rows, columns in folder.modules():
        codes = folder.codes((columns, rows), 1 << bits)
        count = columns // size
        # The first version stores zero points less one.
        less = 1 if version == "gptq" else 0
        zero = np.full((count, rows), 1 << (bits - 1)) if symmetric else folder.codes((count, rows), 1 << bits) + less
        folder.put(f"{module}.qweight", "I32", pack(codes, bits, 0))
        folder.put(f"{module}.qzeros", "I32", pack(zero - less, bits, 1))
        scale = folder.scales(f"{module}.scales", "F16", (count, rows), 0.3 / (1 << bits))
        group = np.arange(columns) // size
        if reordered:
            group = folder.rng.permutation(group)
        folder.put(f"{module}.g_idx", "I32", group.astype(np.int32))
        if biases:
            # Which tools write though the model has none.
            folder.put(f"{module}.bias", "F16", np.zeros(rows, np.float16))
        folder.done(module, ((codes - zero[group]).astype(np.float32) * scale[group]).T)
    return folder


def mxfp4(name):
    folder = compressed(name, "mxfp4-pack-quantized", (32, 64), kind="float", size=32)
    for module, rows, columns in folder.modules():
        codes, exponents = folder.codes((rows, columns), 16), folder.rng.integers(120, 126, (rows, columns // 32), np.uint8)
        folder.put(f"{module}.weight_packed", "U8", nibbles(codes))
        folder.put(f"{module}.weight_scale", "U8", exponents)
        # They are read as GGUF's blocks, whose floats have no negative zero.
        floats = E2M1[codes] + np.float32(0)
        folder.done(module, floats * np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).repeat(32, 1))
    return folder


def nvfp4(name, modelopt):
    if modelopt:
        folder = Folder(name, dict(quant_method="modelopt", quant_algo="NVFP4", group_size=16))
    else:
        folder = compressed(name, "nvfp4-pack-quantized", (32, 32), kind="float", size=16)
    for module, rows, columns in folder.modules():
        codes, scale = folder.codes((rows, columns), 16), folder.rng.integers(56, 100, (rows, columns // 16), np.uint8)
        folder.put(f"{module}.weight" if modelopt else f"{module}.weight_packed", "U8", nibbles(codes))
        folder.put(f"{module}.weight_scale", "F8_E4M3", scale)
        if modelopt:
            whole = E4M3[scale] * folder.scales(f"{module}.weight_scale_2", "F32", (), 4e-3)
        else:
            whole = E4M3[scale] / folder.scales(f"{module}.weight_global_scale", "F32", (1,), 300.0)
        folder.done(module, E2M1[codes] * whole.repeat(16, 1))
    return folder


CASES = {
    # Blocks that do not divide a matrix, as 128 by 128 does not divide most.
    "fp8-blocks": lambda name: transformers_fp8(name, [24, 32]),
    "fp8-tensors": lambda name: transformers_fp8(name, None),
    "fp8-rows": float_rows,
    "fp8-blocks-text": float_blocks,
    "fp8-groups": float_groups,
    "fp8-modelopt": modelopt_fp8,
    "int8-rows": bytes_of_integers,
    "int8-zeros": lambda name: bytes_of_integers(name, asymmetric=True),
    "int8-packed": lambda name: packed(name, 8, 32, "F16", intermediate=64),
    "int4-rows": lambda name: packed(name, 4, None, "BF16", intermediate=128),
    "int4-groups": lambda name: packed(name, 4, 32, "F16", intermediate=64),
    "int4-zeros": lambda name: packed(name, 4, 32, "BF16", asymmetric=True, intermediate=64),
    "int4-reordered": lambda name: packed(name, 4, 16, "BF16", asymmetric=True, reordered=True),
    "awq": lambda name: awq(name, 128, 256),
    "gptq": gptq,
    "gptq-zeros": lambda name: gptq(name, symmetric=False),
    "gptq-reordered": lambda name: gptq(name, size=16, symmetric=False, reordered=True, intermediate=32),
    "gptq-v2": lambda name: gptq(name, symmetric=False, version="gptq_v2", biases=True),
    "gptq-bytes": lambda name: gptq(name, bits=8),
    "mxfp4": mxfp4,
    "nvfp4": lambda name: nvfp4(name, False),
    "nvfp4-modelopt": lambda name: nvfp4(name, True),
}


def main():
    for name, case in CASES.items():
        case(name).write()


if __name__ == "__main__":
    main()
