"""Makes parts.json: small tokenizers, one for each part that tokenizer.json may have, and sentencepiece models, with the ids that the packages give.

    python make_parts.py
"""
import base64
import io
import json
from pathlib import Path

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as model_pb2
import tokenizers

TEXTS = ["", " ", "Hello world", "  two  spaces ", "I'LL don't\n\n\tstop", "a1b22 333 x²½", "e\u0301 é ﬁ Å İß", "日本語テスト 안녕", "<sp> x<sp>y foo bar.", "\u00a0\u3000\u180e\u200b.",
         "🙂👨‍👩‍👧", "(a+b)=$c ``q``", "▁x▁ y▁▁", "the theme hello", "\r\n end \u2028", "हिन्दी ⓐ"]
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "Ġ t", "he ll", "t he", "Ġt he", "hell o", "Ġ Ġ", "1 2", "2 2", "Ã ©"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TOKEN = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def whole(normalizer, pre_tokenizer, model, added):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
            "decoder": None, "model": model}


def byte_level(normalizer, *pre):
    vocab = {p: i for i, p in enumerate(LETTERS + [m.replace(" ", "") for m in MERGES])}
    added = [dict(TOKEN, id=len(vocab), content="<sp>", lstrip=True, rstrip=True), dict(TOKEN, id=len(vocab) + 1, content="foo", single_word=True, normalized=True, special=False)]
    return whole(normalizer, {"type": "Sequence", "pretokenizers": list(pre)}, {"type": "BPE", "vocab": vocab, "merges": MERGES}, added)


def pieces(model, normalizer, pre, **options):
    plain = ["<unk>", "▁", "a", "b", "e", "h", "l", "o", "t", "x", "y", "▁▁", "he", "ll", "hell", "hello", "▁t", "the", "▁the", "▁x", "é"] + [f"<0x{b:02X}>" for b in range(256)]
    if model == "Unigram":
        return whole(normalizer, pre, {"type": "Unigram", "unk_id": 0, "vocab": [[p, -1.5 - 0.25 * i] for i, p in enumerate(plain)], **options}, [])
    merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["▁", "t"], ["t", "he"], ["▁t", "he"], ["▁", "x"], ["▁", "▁"]]
    return whole(normalizer, pre, {"type": "BPE", "unk_token": "<unk>", "vocab": {p: i for i, p in enumerate(plain)}, "merges": merges, **options}, [])


def configurations():
    gpt2 = dict(BYTES, use_regex=True)
    for normalizer in ({"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Nmt"}, {"type": "Prepend", "prepend": "_"},
                       {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                       {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}):
        yield byte_level(normalizer, gpt2)
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield byte_level(None, {"type": "Punctuation", "behavior": behavior}, BYTES)
        yield byte_level(None, split(r"\s|\d", behavior, behavior == "Contiguous"), BYTES)
        yield byte_level(None, split("l", behavior, False, "String"), BYTES)
    for pre in (split(r"(?=[A-Z])", "Isolated"), split(r"\w+", "Removed", True), split(r"\b", "Isolated"), {"type": "Digits", "individual_digits": True}, {"type": "Whitespace"},
                {"type": "Digits", "individual_digits": False}, {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"}, {"type": "CharDelimiterSplit", "delimiter": "e"}):
        yield byte_level(None, pre, BYTES)
    yield byte_level(None, dict(gpt2, add_prefix_space=True))
    yield byte_level(None, {"type": "Punctuation", "behavior": "Contiguous"}, gpt2, {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]", "Isolated"))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    for model in ("BPE", "Unigram"):
        for pre in (metaspace("first", False), metaspace("always", True), metaspace("never", True)):
            yield pieces(model, None, pre, byte_fallback=True)
        yield pieces(model, spaces, None, byte_fallback=False)
    yield pieces("BPE", spaces, None, byte_fallback=True, fuse_unk=True, ignore_merges=True)
    yield pieces("BPE", spaces, None, fuse_unk=True)


def models():
    for kind in ("unigram", "bpe"):
        for options in (dict(normalization_rule_name="identity", byte_fallback=True, vocab_size=330, user_defined_symbols=["<sp>", "foo", "▁x▁"]),
                        dict(normalization_rule_name="identity", vocab_size=60, remove_extra_whitespaces=False, add_dummy_prefix=False),
                        dict(normalization_rule_tsv="rules.tsv", vocab_size=60, treat_whitespace_as_suffix=True)):
            Path("rules.tsv").write_text("FB01\t66 69\n3000\t20\n49 27\t69\n")
            made = io.BytesIO()
            sentences = ["hello the theme of the hello world", "a foo bar and the other hell", "two spaces stop the test x y"] * 20
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=made, model_type=kind, hard_vocab_limit=False, minloglevel=2, **options)
            Path("rules.tsv").unlink()
            model = model_pb2.ModelProto.FromString(made.getvalue())
            model.trainer_spec.ClearField("input")
            # Some pieces are not used: BPE takes them apart again.
            for i, piece in enumerate(model.pieces):
                if piece.type == 1 and len(piece.piece) > 1 and i % 5 == 0:
                    piece.type = 5
            yield model.SerializeToString()


def main():
    out = {"tokenizers": [], "sentencepiece": []}
    for config in configurations():
        tok = tokenizers.Tokenizer.from_str(json.dumps(config))
        out["tokenizers"].append({"config": config, "ids": [tok.encode(text, add_special_tokens=False).ids for text in TEXTS]})
    for model in models():
        tok = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = [tok.encode(text) for text in TEXTS]
        out["sentencepiece"].append({"model": base64.b16encode(model).decode(), "ids": ids, "decoded": [tok.decode(i) for i in ids]})
    out["texts"] = TEXTS
    Path(__file__).with_name("parts.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
