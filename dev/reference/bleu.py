#!/usr/bin/env python3
"""BLEU by sacrebleu: test/golden/bleu.json, and the scores of what `train_gpt eval --pairs --details FILE` wrote.

    bleu.py golden [--check]      writes the golden file, or compares it: words by mteval-v13a, and scores of sets
    bleu.py FILE                  prints the score of the lines {"target": ..., "written": ...}
"""
import json
import os
import random
import sys

import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test", "golden", "bleu.json")
TEXTS = [
    "", " ", "Hello, world!", "3.14 and 1,000.5, or .5 and 5.", "a.,b ,.c 1.,2", "pre-war 20-30 1- -1 x-y", "\"quoted\" 'single' (a) [b] {c}",
    "&quot;x&quot; &amp;lt; &lt;b&gt;", "line-\nbreak and\nanother -\n", "<skipped>text<skipped>", "caf\u00e9. na\u00efve, \u4f60\u597d\u3002\u4e16\u754c, \u20ac5.50",
    "a\u00a0b\u2003c\u3000d\u0085e", "a/b\\c|d~e`f^g_h", "$5 #1 100% a@b.c a&b *x* +y =z", "...", ",,,", "1.2.3", "e.g. i.e., U.S.", "tab\there  spaces ",
]


def sets():
    r = random.Random(4)
    words = "the a cat dog sees, runs. 3.5 (and) not-so it's \u00fcber".split()
    sentence = lambda low, high: " ".join(r.choice(words) for _ in range(r.randint(low, high)))
    for size, low, high, keep in [(1, 3, 3, 0.5), (1, 8, 8, 0.7), (5, 1, 3, 0.9), (20, 4, 12, 0.8), (20, 4, 12, 0.1), (3, 5, 9, 1.0)]:
        references = [sentence(low, high) for _ in range(size)]
        written = [" ".join(w if r.random() < keep else r.choice(words) for w in t.split() if r.random() < 0.5 + keep / 2) for t in references]
        yield references, written
    yield ["a b c d e"], [""]
    yield ["a b c d e"], ["a b c d e f g h"]
    yield ["x y z"], ["a b c d"]


def golden():
    tokenizer = Tokenizer13a()
    out = {"words": [[t, tokenizer(t.rstrip())] for t in TEXTS], "sets": []}
    for references, written in sets():
        score = sacrebleu.corpus_bleu(written, [references])
        out["sets"].append({"references": references, "written": written, "score": score.score, "precisions": score.precisions, "brevity": score.bp})
    return json.dumps(out, indent=1) + "\n"


def main():
    if sys.argv[1] != "golden":
        rows = [json.loads(line) for line in open(sys.argv[1])]
        print(sacrebleu.corpus_bleu([r["written"] for r in rows], [[r["target"] for r in rows]]))
    elif "--check" not in sys.argv:
        open(GOLDEN, "w").write(golden())
    elif open(GOLDEN).read() != golden():
        sys.exit(f"{GOLDEN} differs from what sacrebleu says")


main()
