"""Makes hashes.json: ids that the tokenizers, sentencepiece and tiktoken packages give for every text of the shared data.

    python make_hashes.py ../../../../shared/data

For each tokenizer and text: ids of the whole file as one text, and of its lines (each a text of its own), as XXH3-128 of little-endian i32, lines ended by -1.
What a tokenizer.json says of truncation and padding is set aside and nothing is added around a text; special tokens in it are found.
"""
import json
import sys
from pathlib import Path

import numpy
import sentencepiece
import tiktoken
import tokenizers
import xxhash
from tiktoken.load import load_tiktoken_bpe

CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def from_tokenizers(path):
    tok = tokenizers.Tokenizer.from_file(str(path))
    tok.no_truncation()
    tok.no_padding()
    return lambda text: tok.encode(text, add_special_tokens=False).ids


def from_sentencepiece(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode


def from_tiktoken(path, pattern):
    ranks = load_tiktoken_bpe(str(path))
    return tiktoken.Encoding(path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def main(data):
    readers = {str(p.relative_to(data)): from_tokenizers(p) for p in sorted(data.rglob("*tokenizer*.json")) if "config" not in p.name}
    for pattern in ("models/*/*.model", "tokenizers/llama2/*.model", "tokenizers/mistral/*.model*"):
        readers.update({str(p.relative_to(data)): from_sentencepiece(p) for p in sorted(data.glob(pattern))})
    readers["tokenizers/tiktoken/cl100k_base.tiktoken"] = from_tiktoken(data / "tokenizers/tiktoken/cl100k_base.tiktoken", CL100K)
    readers["tokenizers/llama3/tokenizer.model"] = from_tiktoken(data / "tokenizers/llama3/tokenizer.model", LLAMA3)
    texts = [p for p in sorted((data / "text").rglob("*")) if p.is_file() and p.name != "provenance.txt"]
    out = {}
    for name, encode in readers.items():
        out[name] = {}
        for path in texts:
            text = path.read_bytes().decode("utf-8")
            whole = numpy.array(encode(text), dtype="<i4")
            lines = xxhash.xxh3_128()
            for line in text.split("\n"):
                lines.update(numpy.array(encode(line) + [-1], dtype="<i4").tobytes())
            out[name][str(path.relative_to(data))] = [len(whole), xxhash.xxh3_128_hexdigest(whole.tobytes()), lines.hexdigest()]
        print(name, file=sys.stderr, flush=True)
    Path(__file__).with_name("hashes.json").write_text(json.dumps(out, indent=1) + "\n")


main(Path(sys.argv[1]))
