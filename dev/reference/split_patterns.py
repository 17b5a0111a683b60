#!/usr/bin/env python3
"""Where Split patterns cut text: Hugging Face's `tokenizers` (Oniguruma) against ours (llmc/text/split_pattern.c, PCRE2).

    split_patterns.py golden [--check]              writes test/golden/split_patterns.json, or compares it
    split_patterns.py compare [--random 20000]      every pattern over all code points, and random patterns
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

from tokenizers import Regex, pre_tokenizers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GOLDEN = os.path.join(ROOT, "test", "golden", "split_patterns.json")
BLOCK = 4096
FORM = "{c}a{c} "  # each code point among others
ALL = [(0, 0x110000, 1)]
# For the golden file: of the ranges whose characters are all alike, every 61st.
PLANES = [(0, 0x3400, 1), (0x3400, 0x9F80, 61), (0x9F80, 0xAC00, 1), (0xAC00, 0xD780, 61), (0xD780, 0xD800, 1), (0xE000, 0xF900, 61),
          (0xF900, 0x17000, 1), (0x17000, 0x18C00, 61), (0x18C00, 0x20000, 1), (0x20000, 0x110000, 61)]

O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
HAN = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
       r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
POSSESSIVE = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
PUNCT = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Accepted by us.
PATTERNS = [
    O200K, HAN, POSSESSIVE, PUNCT, CJK, r"\w+", r"\W", r"\w+|\W+", r"[\w]+", r"[^\w]+", r"[\W]+", r"\b", r"\B", r"\b\w+\b", r"\w\b|\b\w",
    r"\h+", r"\H+", r"[\h]", r"\v+", r"\s", r"\S+", r"\d+", r"\D+", r"\R", r"\N+", r"\O", r".+", r"^", r"$", r"^.", r".$", r"\A.", r".\z", r"\n\Z|a",
    r"[[:alpha:]]+", r"[[:upper:]]+", r"[[:lower:]]+", r"[[:punct:]]+", r"[[:alnum:]]+", r"[[:digit:]]+", r"[[:space:]]+", r"[[:blank:]]+",
    r"[[:cntrl:]]+", r"[[:graph:]]+", r"[[:print:]]+", r"[[:xdigit:]]+", r"[[:word:]]+", r"[[:ascii:]]+", r"[[:^alpha:]]+", r"[^[:punct:]]+",
    r"[a-c&&[^b]]+", r"[^a-c&&[b]]+", r"[\p{L}&&[^\p{Lu}]]+", r"[a[b-d]&&c-z]+", r"[\w&&[^\d_]]+", r"[^\s&&\S]+", r"[\]a]+", r"[a-]+", r"[-a]+",
    r"\p{L}+", r"\p{Lu}\p{Ll}*", r"\p{^L}+", r"\P{L}+", r"\P{^L}+", r"\p{Letter}+", r"\p{uppercase_letter}+", r"\p{LC}+", r"\p{C}+", r"\p{Cn}+", r"\p{Alphabetic}+",
    r"\p{Alnum}+", r"\p{Punct}+", r"[\p{Punct}]+", r"\p{Word}+", r"[\p{Word}]+", r"\p{White_Space}+", r"\p{Lower}+", r"\p{Upper}+", r"\p{Any}", r"\p{Assigned}+",
    r"\p{Han}+", r"\p{Hiragana}+|\p{Katakana}+", r"\p{Cyrillic}+", r"\p{Greek}+", r"\p{Latin}+", r"\p{Arabic}+", r"\p{Hangul}+", r"\p{Thai}+", r"\p{Devanagari}+",
    r"x*", r"a*", r"(?=g)", r"(?=a)|\s+", r"(?<=a)", r"(?<!a)b|", r"(a|b)?", r"", r"a|", r"\d{0,1}", r"(?:)",
    r"a{2}+", r"(?:ab){1,2}+", r"a{2}?", r"a{1,2}?b", r"a{,2}b", r"a{1,}", r"a+?b", r"a*+a", r"a++b", r"(?>a+)b", r".{3}", r"(?:a|ab)(?:c|bcd)",
    r"(?i:s)+", r"(?i:k)+", r"(?i)abc|x", r"(?i:[sk])+", r"(?i:[^s])+", r"(?i:a(?-i:b))", r"(?i:'s|\u2019s)", r"(?<x>a)b", r"(a)(b)",
    r"\x41+", r"\x{e9}+", r"\u00e9+", "\u00e9+", r"\.", r"\-\#\/\ ", r"[\b\t\n\r\f\v\a\e]+", r"[\x{4e00}-\x{9fff}]+", r"}", r"]",
]
# Refused by us, whatever the reason.
REFUSED = [r"(a)\1", r"(?<n>a)\k<n>", r"\X", r"\y", r"a\K", r"\G", r"(?x: a )", r"(?m:.)", r"(?i:\u00e9)", r"(?i:ss)", r"(?i:fi)", r"(?i:st)", r"(?i:\p{L})", r"(?i:[^\s\p{L}])",
           r"(?i:[\u00e9])", r"\p{Nope}", r"\p{Emoji}", r"\q", r"\Qab\E", r"\pL", r"[[:foo:]]", r"[a-\d]", r"[a-c-e]", r"[z-a]", r"[]a]", r"[]", r"[a&&]", r"a**", r"a{2}{3}", r"*a", r"{2}",
           r"a{x", r"a{3,2}", r"a{1001}", r"(a", r"a)", r"[a", "a\\", r"(?=a)*", r"^*", r"\b+", r"(?(1)a)", r"(?~a)", r"(*FAIL)", r"\xe9", r"\012", r"\cA", r"a(?i)b|c", r"\x{110000}", r"\x{d800}"]


class Theirs:
    def __init__(self, pattern):
        self.split = pre_tokenizers.Split(Regex(pattern), "isolated")

    def words(self, text):
        return [len(w.encode()) for w, _ in self.split.pre_tokenize_str(text)]


def tokenizer_json(pattern):
    names = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b else None for b in range(256)]
    missing = iter(range(256, 512))
    vocab = {n or chr(next(missing)): b for b, n in enumerate(names)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": 256, "content": "<|endoftext|>", "special": True}
    return {"added_tokens": [end], "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "model": {"type": "BPE", "vocab": vocab, "merges": []}}


def ours(pipe, pattern, texts):
    """The sizes of the words of each text; or why the pattern is refused."""
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "tokenizer.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(tokenizer_json(pattern), f)
        data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
        run = subprocess.run([pipe, path, "words"], input=data, capture_output=True)
    if run.returncode:
        return run.stderr.decode().strip()
    words, at = [], 0
    while at < len(run.stdout):
        n = struct.unpack_from("<I", run.stdout, at)[0]
        words.append(list(struct.unpack_from(f"<{n}I", run.stdout, at + 4)))
        at += 4 + 4 * n
    return words


def blocks(planes):
    codes = [c for first, end, step in planes for c in range(first, end, step) if not 0xD800 <= c < 0xE000]
    return ["".join(FORM.format(c=chr(c)) for c in codes[i : i + BLOCK]) for i in range(0, len(codes), BLOCK)]


TEXTS = ["", "a", "ag", "aab", "aaab aaaab", "ababab", "e\u0301 u", "don't DON'T don\u2019S", "  \n\n  x\n", "abc\nabc\n", "a\u180eb  \u180e", "Stra\u00dfe \ufb01n K\u212ak\u017fs", "12 345 6789",
         "\u4f60\u597d\u4e16\u754c \u3042\u30a2 \uff08\u3005\uff09", "#define X_1 0xFFag;", "\u00b2\u00b3x\u00bc", "\t \r\n\x0b\x0c\x85\u2028", "Hello World helloWORLD", "a.b-c/d [e] {f}"]

# --- golden file ---


def golden(check):
    all_blocks, rows = blocks(PLANES), []
    for pattern in PATTERNS:
        theirs = Theirs(pattern)
        crc = 0
        for text in all_blocks:
            words = theirs.words(text)
            crc = zlib.crc32(struct.pack(f"<{len(words)}I", *words), crc)
        rows.append({"pattern": pattern, "words": [theirs.words(t) for t in TEXTS], "crc": f"{crc:08x}"})
    dump = lambda x: json.dumps(x, separators=(",", ":"))
    content = '{"form":%s,\n"planes":%s,\n"block":%d,\n"texts":%s,\n"refused":%s,\n"patterns":[\n%s\n]}\n' % (
        dump(FORM), dump(PLANES), BLOCK, dump(TEXTS), dump(REFUSED), ",\n".join(map(dump, rows)))
    if check:
        with open(GOLDEN, encoding="utf-8") as f:
            same = f.read() == content
        print(f"{GOLDEN}: {'as committed' if same else 'DIFFERS'}")
        return not same
    with open(GOLDEN, "w", encoding="utf-8") as f:
        f.write(content)
    print(f"{GOLDEN}: {os.path.getsize(GOLDEN)} bytes")
    return False


# --- comparison ---

ATOMS = ["a", "b", "g", "s", "k", "f", "i", "1", " ", r"\n", r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\H", ".", r"\p{L}", r"\p{Lu}", r"\p{N}", r"\P{L}", r"\p{M}", r"\R", "[ab]", "[^a]",
         "[[:punct:]]", "[[:alpha:]]", "[[:^upper:]]", r"[\w&&[^\d]]", r"[^\s\p{L}\p{N}]", "[a-f]", r"[\p{Ll}\p{M}]", r"\x{301}", "'", "\u00e9", r"\p{Han}", r"[^\r\n\p{L}\p{N}]", "_", r"[-_]"]
ANCHORS = ["^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z", "(?=a)", r"(?!\S)", r"(?<=a)", "(?<!b)", r"(?!\w)"]
QUANTIFIERS = ["*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,2}", "{,2}", "{1,}", "{2}+", "{1,2}+", "{2}?", "{1,2}?"]


def random_pattern(r, depth=0):
    out = []
    for _ in range(r.choice((1, 1, 2, 3))):
        if r.random() < 0.12:
            out.append(r.choice(ANCHORS))
            continue
        if depth < 2 and r.random() < 0.25:
            begin = r.choice(("(", "(?:", "(?>", "(?i:", "(?=", "(?!"))
            out.append(begin + random_pattern(r, depth + 1) + ")")
            if begin in ("(?=", "(?!"):
                continue
        else:
            out.append(r.choice(ATOMS))
        if r.random() < 0.4:
            out.append(r.choice(QUANTIFIERS))
    text = "".join(out)
    return text + "|" + random_pattern(r, depth + 1) if r.random() < 0.4 else text


def random_texts(r):
    pool = "aaabbgsSkKfiABZ011_  \n\r\t.,'-\u00e9\u00c9\u0301\u00b2\u00df\ufb01\u017f\u212a\u2167\u4f60\u3042\u180e\u00a0\u0661\U00013460\U00016d40"
    return ["".join(r.choice(pool) for _ in range(r.choice((1, 2, 4, 8, 16)))) for _ in range(40)]


def compare(a):
    failed = refused = 0
    all_blocks = blocks(ALL)
    for pattern in PATTERNS:
        mine = ours(a.pipe, pattern, TEXTS + all_blocks)
        theirs = Theirs(pattern)
        bad = mine if isinstance(mine, str) else [t[:40] for t, w in zip(TEXTS + all_blocks, mine) if theirs.words(t) != w]
        if bad:
            failed += 1
            print(f"{pattern[:60]!r}: {bad if isinstance(bad, str) else f'{len(bad)} of {len(mine)} texts differ: {bad[:2]}'}")
    for pattern in REFUSED:
        if not isinstance(ours(a.pipe, pattern, ["a"]), str):
            failed += 1
            print(f"{pattern!r}: accepted")
    print(f"{len(PATTERNS)} patterns over all code points, {len(REFUSED)} to be refused: {failed} wrong", flush=True)
    r = random.Random(a.seed)
    for k in range(a.random):
        pattern, texts = random_pattern(r), random_texts(r)
        mine = ours(a.pipe, pattern, texts)
        try:
            theirs = Theirs(pattern)
        except Exception:  # not a pattern for Oniguruma
            theirs = None
        if isinstance(mine, str):
            refused += 1
            if a.verbose:
                print(f"  {pattern!r}: {mine}")
        elif theirs:
            for t, w in zip(texts, mine):
                if theirs.words(t) != w:
                    print(f"  {pattern!r} on {t!r}: ours {w}, theirs {theirs.words(t)}")
                    failed += 1
                    break
    print(f"{a.random} random patterns, {refused} of them refused: {failed} wrong")
    return failed > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden").add_argument("--check", action="store_true")
    c = commands.add_parser("compare")
    c.add_argument("--pipe", default=os.path.join(ROOT, "build", "tokenize_pipe"))
    c.add_argument("--random", type=int, default=2000)
    c.add_argument("--seed", type=int, default=1)
    c.add_argument("--verbose", action="store_true")
    a = parser.parse_args()
    sys.exit(golden(a.check) if a.command == "golden" else compare(a))


if __name__ == "__main__":
    main()
