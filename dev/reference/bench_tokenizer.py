#!/usr/bin/env python3
"""Encoding speed of this engine, Hugging Face `tokenizers` and tiktoken: the same text, vocabulary and threads.

    bench_tokenizer.py TEXT TOKENIZER.json [--threads N] [--rounds N] [--bench build/bench_tokenizer]

TEXT must be UTF-8 and the tokenizer GPT-2 style, as `build/bench_tokenizer train` writes it. The three take turns,
because a machine's speed drifts, and the best round of each counts. CPU time is printed as well; on a busy machine it
is the fairer number. If the tokens differ, the comparison fails.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text")
parser.add_argument("tokenizer")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--bench", default="build/bench_tokenizer")
a = parser.parse_args()
os.environ["RAYON_NUM_THREADS"] = str(a.threads)  # before tokenizers starts its threads
os.environ["TOKENIZERS_PARALLELISM"] = "true" if a.threads > 1 else "false"

import tiktoken
import tokenizers

with open(a.text, "rb") as f:
    data = f.read()
documents, at = [], 0
while at < len(data):  # as dev/bench_tokenizer.c cuts it
    cut = data.find(b"\n", at + 65536)
    end = cut + 1 if cut >= 0 else len(data)
    documents.append(data[at:end].decode())
    at = end

theirs = tokenizers.Tokenizer.from_file(a.tokenizer)
theirs.encode_special_tokens = True  # special tokens in the text are text, as in the other two
with open(a.tokenizer, encoding="utf-8") as f:
    model = json.load(f)["model"]
chars, n = {}, 256
for b in range(256):
    if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b:
        chars[chr(b)] = b
    else:
        chars[chr(n)] = b
        n += 1
ranks = {bytes(chars[c] for c in token): id for token, id in model["vocab"].items() if token != "<|endoftext|>"}
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # tiktoken's own spelling
tik = tiktoken.Encoding("bench", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})


def ours():
    out = subprocess.run([a.bench, "encode", a.text, a.tokenizer, str(a.threads)], stdout=subprocess.PIPE, check=True, text=True).stdout
    seconds = float(re.search(r"encode: ([\d.]+) s", out)[1])
    return seconds, float(re.search(r"([\d.]+) s of CPU", out)[1]), int(re.search(r"(\d+) tokens, [\d.]+ bytes", out)[1])


def timed(encode, count):
    start, cpu = time.perf_counter(), time.process_time()
    result = encode()
    return time.perf_counter() - start, time.process_time() - cpu, count(result)


def hugging_face():
    if a.threads == 1:
        return timed(lambda: [theirs.encode(d, add_special_tokens=False) for d in documents], lambda r: sum(map(len, r)))
    return timed(lambda: theirs.encode_batch_fast(documents, add_special_tokens=False), lambda r: sum(map(len, r)))


def tiktoken_():
    if a.threads == 1:
        return timed(lambda: [tik.encode_ordinary(d) for d in documents], lambda r: sum(map(len, r)))
    return timed(lambda: tik.encode_ordinary_batch(documents, num_threads=a.threads), lambda r: sum(map(len, r)))


contestants = {"ours": ours, f"tokenizers {tokenizers.__version__}": hugging_face, f"tiktoken {tiktoken.__version__}": tiktoken_}
best = {}
for _ in range(a.rounds):
    for name, run in contestants.items():
        wall, cpu, tokens = run()
        old = best.get(name, (1e30, 1e30, tokens))
        best[name] = (min(old[0], wall), min(old[1], cpu), tokens)
size = len(data) / 1e6
print(f"{a.text}: {size:.1f} MB in {len(documents)} documents, {len(ranks)} tokens of vocabulary, {a.threads} thread(s)")
for name, (wall, cpu, tokens) in best.items():
    print(f"{name:20} {tokens:10} tokens  {size / wall:8.1f} MB/s wall ({size / wall / a.threads:6.1f} per thread)  {size / cpu:8.1f} MB per CPU second")
mine, others = best.pop("ours"), list(best.values())
print(f"ours against the faster of them: {min(o[0] for o in others) / mine[0]:.1f} x by wall time, {min(o[1] for o in others) / mine[1]:.1f} x by CPU time")
if len({o[2] for o in others + [mine]}) > 1:
    sys.exit("the tokens differ")
