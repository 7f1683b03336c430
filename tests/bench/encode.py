"""Megabytes a second (of processor time) of the tokenizers package on one thread: encode.py TOKENIZER TEXT ROUNDS. Prints one line of JSON."""
import json
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers  # noqa: E402

tok = tokenizers.Tokenizer.from_file(sys.argv[1])
tok.no_truncation()
tok.no_padding()
data = open(sys.argv[2], "rb").read()
text = data.decode("utf-8")
best, ids = float("inf"), 0
for _ in range(int(sys.argv[3])):
    # Without offsets where the package can leave them out.
    for encode in (lambda: tok.encode(text, add_special_tokens=False), lambda: tok.encode_batch_fast([text], add_special_tokens=False)[0]):
        start = time.process_time()
        ids = len(encode().ids)
        best = min(best, time.process_time() - start)
print(json.dumps({"mb_per_s": len(data) / best / 1e6, "ids": ids, "version": tokenizers.__version__}))
