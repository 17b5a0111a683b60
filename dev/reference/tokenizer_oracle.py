#!/usr/bin/env python3
"""Tokens by Hugging Face `tokenizers`: the golden files of test/text/test_tokenizer.c, and a large comparison.

    tokenizer_oracle.py golden              writes test/golden/tokenizer.{txt,json} and tokenizer_cases.json
    tokenizer_oracle.py golden --check      compares them with what it would write
    tokenizer_oracle.py compare --tokenizer T.json --pipe build/tokenize_pipe --random 1000000 FILE...
        random strings and the text of FILEs, through T.json with every kind of pre-tokenizer

Hugging Face does not accept bytes that are not valid UTF-8. Such a byte counts as a character that is neither letter,
number nor space: while the text is cut a private-use character stands for it, and while pieces are merged the byte
itself.
"""
import argparse
import codecs
import itertools
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test", "golden")

# --- configurations: parts that replace those of a trained tokenizer.json ---

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = dict(BYTE_LEVEL, use_regex=True)
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
          r"|\s*[\r\n]|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}


def added(content, id, special, **flags):
    return dict({"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": not special, "special": special}, **flags)


def configurations(vocab_size):
    n = vocab_size
    tokens = [added("<|endoftext|>", n, True), added("<|im_start|>", n + 1, True), added("<|im|>", n + 2, True),
              added("<mask>", n + 3, True, lstrip=True), added("<right>", n + 4, False, rstrip=True),
              added("New York", n + 5, False), added("caf\u00e9", n + 6, False), added("  ", n + 7, False, normalized=False),
              added("<both>", n + 8, False, lstrip=True, rstrip=True), added("\u4f60\u597d", n + 9, False), added("re\u0301sume\u0301", n + 10, False)]
    return {
        "gpt2": {"pre_tokenizer": GPT2},
        "llama3": dict(sequence(split(LLAMA3), BYTE_LEVEL), ignore_merges=True),
        "qwen2": sequence(split(QWEN2), BYTE_LEVEL),
        "qwen2_nfc": dict(sequence(split(QWEN2), BYTE_LEVEL), normalizer={"type": "NFC"}),
        "cl100k": sequence(split(CL100K, "Removed", True), BYTE_LEVEL),
        "o200k": sequence(split(O200K), BYTE_LEVEL),
        "digit": sequence({"type": "Digits", "individual_digits": True}, GPT2),
        "digits": sequence({"type": "Digits", "individual_digits": False}, GPT2),
        "literal": sequence({"type": "Split", "pattern": {"String": "a."}, "behavior": "Isolated", "invert": False}, GPT2),
        "vowels": sequence(split("[aeiou]", "Removed", True), BYTE_LEVEL),
        "whole": {"pre_tokenizer": BYTE_LEVEL},
        "prefix": {"pre_tokenizer": dict(GPT2, add_prefix_space=True)},
        "added": {"pre_tokenizer": GPT2, "added_tokens": tokens},
        "added_nfc": {"pre_tokenizer": GPT2, "added_tokens": tokens, "normalizer": {"type": "NFC"}},
        "added_prefix": {"pre_tokenizer": dict(GPT2, add_prefix_space=True), "added_tokens": tokens},
    }


MAIN = ("gpt2", "llama3", "qwen2", "qwen2_nfc")  # for the goldens that are large
LOSSY = ("vowels",)  # drops text


def configured(base, parts):
    root = json.loads(json.dumps(base))
    for key in ("pre_tokenizer", "normalizer", "added_tokens"):
        root[key] = parts.get(key, [] if key == "added_tokens" else None)
    root["model"]["ignore_merges"] = parts.get("ignore_merges", False)
    return root


# --- tokens ---

BYTE_CHARS = {}
for b in range(256):
    printable = 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b
    BYTE_CHARS[b] = chr(b) if printable else chr(256 + sum(v >= chr(256) for v in BYTE_CHARS.values()))
STAND_IN = 0xE000  # + the byte
codecs.register_error("stand_in", lambda e: ("".join(chr(STAND_IN + b) for b in e.object[e.start:e.end]), e.end))
STAND_IN_NAMES = {"".join(BYTE_CHARS[x] for x in chr(STAND_IN + b).encode()): BYTE_CHARS[b] for b in range(128, 256)}
STAND_IN_NAME = re.compile("|".join(map(re.escape, STAND_IN_NAMES)))


class Reference:
    def __init__(self, root):
        self.root = root
        self.tokenizer = Tokenizer.from_str(json.dumps(root))

    def ids(self, data, special=True):
        """The ids of a text in bytes. Special tokens in it become their ids, or are ordinary text."""
        self.tokenizer.encode_special_tokens = not special
        try:
            return self.tokenizer.encode(data.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            return self.ids_of_invalid(data.decode(errors="stand_in"))

    def ids_of_invalid(self, text):
        assert not self.root["added_tokens"] and not self.root["normalizer"]
        ids = []
        for piece, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text):
            piece = STAND_IN_NAME.sub(lambda m: STAND_IN_NAMES[m.group()], piece)
            ids += [token.id for token in self.tokenizer.model.tokenize(piece)]
        return ids


def hash_ids(state, ids):
    """CRC-32 over the ids as 32-bit little-endian numbers, after a separator."""
    return zlib.crc32(b"\xff" + struct.pack(f"<{len(ids)}I", *ids), state)


# --- texts ---

SNIPPETS = [
    "", " ", "  ", "\n", "a", "\x00", "\x00\x01\x02\x1b[0m\x7f", "Hello world", "Hello  world ", " leading", "trailing   ",
    "It's we're they've I'm you'll he'd don't", "IT'S WE'RE THEY'VE I'M YOU'LL HE'D DON'T", "'s't're've'm'll'd", "''s", "' s",
    "x'\u017f y'\u017fa", "l'l 'l 'v 'r 're", "a\u00a0b\u00a0\u00a0c", "a\u2003\u2003b\u3000c", "a\u200bb\ufeffc", "\u1680\u2028x\u2029y\u0085z",
    "\t\tif x:\n\t\t    return  1\r\n\r\n\r\nend", "   \n  \n x", "\r\n\r\n  ", "a \r b", "a\n\n  b", "!!!\n\n!!!", " !\r\n ?", "1234567890", "12 345 6789",
    "3.14159 1,000,000 0x1F 1e-5", "\u0663\u0664\u0665 \u00bd \u2167 \u4e00\u4e8c", "\u096712\u09e8", "x2y3", "...---===>>>", "#!/bin/sh -- %s\\n",
    "\U0001f600\U0001f601", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd\U0001f44d",
    "\u2764\ufe0f\u200d\U0001f525", "1\ufe0f\u20e3 keycap", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c",
    "\u202e\u202babc\u202c", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "cafe\u0301 caf\u00e9 n\u0303 A\u030a \u212b \u2126", "o\u0323\u0307 o\u0307\u0323 \u1e69 s\u0323\u0307", "Z\u0351\u036b\u0343a\u0329l\u0347g\u0325o\u034d", "\u0344\u0374\u037e\u0958\u2adc\ufb1d",
    "\u0915\u093c \u09c7\u09be \u0b92\u0bd7 \u1100\u1161\u11a8 \uac00\u11a8", "\U0001d15e\U0001d15f\U000110ba", "\ufb01 \u00b2 \u2460 \uff21", "\u01c5\u02b0\u00aa\u0370", "a\u0300\u0301\u0302\u0303\u0304 b",
    "\u0300start", "\U000e0001\U000e0020", "\U0010ffff\uffff\ufffd\ufffe", "\U000323b0 \U00013430 \U0001e4d0", "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|endoftext", "<|im_start|>user<|im|>",
    "x <mask>y", "x  <mask> y", " \n\u00a0<mask>", "a<right> \n b", "a <both> b", " New York New Yorker", "caf\u00e9s cafe\u0301s", "NewYork   x", "\u4f60\u597d\u4f60\u597d\u4e16\u754c", "<both><both> <mask> <right>  ",
    "\U00011935\U00011930 \U00011099\U000110ba \u1dfa\u031b", "my re\u0301sume\u0301s r\u00e9sum\u00e9",
    "a\u0315\u0300\u05ae\u0316\u0334" * 20, "a.b.a.a..", "The quick brown fox jumps over the lazy dog.", "def f(x):\n    return x**2  # square\n", "http://example.org/a?b=c&d=%20", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism" * 3, "ababababababababababababababababababababababababababababababab", "the" * 40, "=" * 70, " " * 60 + "x", "\n" * 50,
]
INVALID = [b"\x80", b"\xff\xfe", b"a\x80b", b"\xc0\x80", b"\xc3", b"caf\xc3 x", b"\xe2\x82", b"\xe2\x82 \xac", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
           b"\xf0\x9f\x98", b" \xf0\x9f\x98\x80\x80 ", b"'s\xffs", b"1\xff2", b"\xe0\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xff\xff\n\xff \xff", b"\xc2\xc2\xa0",
           b"\xe3\x80\xe3\x80\x80x", bytes(range(256)), bytes(range(255, -1, -1))]
PRODUCTS = [([" ", "a", "\n", "\r", "1", "!", "'s", "\u00a0", "\u00e9"], 4), (["'", "s", "S", "t", "re", "VE", "ll", "L", "m", "D", "\u017f", " ", "a"], 3)]
RUNS = ["a", " ", "\n", "\t", "1", "!", "\u00e9", "\u4f60", "\U0001f600", "ab", "a b", "' ", "e\u0301", "\x00"]
RUN_LENGTH = 100000
BLOCK = 4096
CODE_FORMAT = "{c} {c}a{c}1{c}.{c}{c}\n'{c} "
MARKS_FORMAT = "{c}\u0301{c}\u0323\u0307{c}\u0301\u0327a{c}\u0334\u0345{c}\u05b0 "


def code_block(first, form):
    codes = (c for c in range(first, first + BLOCK) if not 0xD800 <= c < 0xE000)
    return "".join(form.format(c=chr(c)) for c in codes).encode()


def training_text():
    """About 40 kB that resemble prose and code in several scripts, from a random list of words."""
    r = random.Random(20240601)
    syllables = "ka lo mi ter an the in st er ou qu ing ed ly pre con un sh ar wo".split()
    words = ["".join(r.choice(syllables) for _ in range(r.choice((1, 1, 2, 2, 3, 4)))) for _ in range(900)]
    words += ["don't", "it's", "we'll", "I'm", "they've", "caf\u00e9", "na\u00efve", "\u043f\u0440\u0438\u0432\u0435\u0442", "\u4f60\u597d\u4e16\u754c", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600", "42", "1984", "3.14"]
    weights = [1 / (k + 2) for k in range(len(words))]
    out = []
    while sum(map(len, out)) < 36000:
        line = r.choices(words, weights, k=r.randint(3, 14))
        kind = r.random()
        if kind < 0.7:
            out.append(" ".join(line).capitalize() + r.choice([". ", "! ", "?\n", ".\n\n", ", "]))
        elif kind < 0.9:
            out.append("    " * r.randint(0, 3) + f"{line[0]}_{line[1]} = {line[2]}({r.randint(0, 9999)});\n")
        else:
            out.append("-" * r.randint(1, 20) + "\t" + "a" * r.randint(1, 30) + "\r\n")
    return "".join(out)


def train(text, vocab_size):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return json.loads(t.to_str())


# --- golden files ---


def golden_cases(base):
    configs = configurations(len(base["model"]["vocab"]))
    references = {name: Reference(configured(base, parts)) for name, parts in configs.items()}
    cases = []
    for text in [s.encode() for s in SNIPPETS] + INVALID:
        valid = text.decode(errors="replace").encode() == text
        ids, plain = {}, {}
        for name, ref in references.items():
            if valid or not (ref.root["added_tokens"] or ref.root["normalizer"]):
                ids[name] = ref.ids(text)
                if ref.ids(text, special=False) != ids[name]:
                    plain[name] = ref.ids(text, special=False)
        cases.append({"hex": text.hex(), "ids": compact(ids), "plain": plain})
    big = []
    for name in MAIN:
        ref = references[name]
        for alphabet, length in PRODUCTS:
            state = 0
            for chosen in itertools.product(alphabet, repeat=length):
                state = hash_ids(state, ref.ids("".join(chosen).encode()))
            big.append({"config": name, "alphabet": alphabet, "length": length, "hash": f"{state:08x}"})
        for run in RUNS:
            ids = ref.ids((run * RUN_LENGTH).encode())
            big.append({"config": name, "repeat": run, "times": RUN_LENGTH, "hash": f"{hash_ids(0, ids):08x}"})
        for form in [CODE_FORMAT] + ([MARKS_FORMAT] if "nfc" in name else []):
            blocks = [f"{hash_ids(0, ref.ids(code_block(first, form))):08x}" for first in range(0, 0x110000, BLOCK)]
            big.append({"config": name, "codes": form, "block": BLOCK, "hashes": compact_list(blocks)})
    return {"configs": configs, "lossy": LOSSY, "cases": cases, "big": big}


def compact(ids):
    """Configurations that give the same ids as the first one are listed by name only."""
    names = list(ids)
    same = [n for n in names[1:] if ids[n] == ids[names[0]]]
    return {"same": same, names[0]: ids[names[0]], **{n: ids[n] for n in names[1:] if n not in same}}


def compact_list(hashes):
    """Runs of equal hashes become [hash, times]."""
    return [[h, len(list(g))] for h, g in itertools.groupby(hashes)]


def golden(check):
    text = training_text()
    base = train(text, 1100)
    cases = golden_cases(base)
    dump = lambda x: json.dumps(x, ensure_ascii=False, separators=(",", ":")) + "\n"
    lines = {k: v for k, v in cases.items() if k in ("configs", "lossy")}
    body = dump(lines).rstrip()[:-1] + ',\n"cases":[\n' + ",\n".join(dump(c).strip() for c in cases["cases"])
    body += '\n],\n"big":[\n' + ",\n".join(dump(c).strip() for c in cases["big"]) + "\n]}\n"
    failed = 0
    for name, content in (("tokenizer.txt", text), ("tokenizer.json", dump(base)), ("tokenizer_cases.json", body)):
        path = os.path.join(GOLDEN, name)
        if check:
            with open(path, encoding="utf-8", newline="") as f:
                same = f.read() == content
            print(f"{name}: {'as committed' if same else 'DIFFERS'}")
            failed |= not same
        else:
            with open(path, "w", encoding="utf-8", newline="") as f:
                f.write(content)
            print(f"{name}: {os.path.getsize(path)} bytes")
    return failed


# --- comparison ---

POOLS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t\n\r\x0b\x0c", "!\"#$%&()*+,-./:;<=>?@[]^_{|}~", "'",
         "\u00a0\u1680\u2003\u2028\u202f\u205f\u3000\u0085\u200b\ufeff", "\u00e9\u00fc\u00df\u0131\u0130\u017f\u212a\u01c5\u00aa", "\u0300\u0301\u0323\u0327\u0345\u05b0\u0651\u3099", "\u0430\u0431\u0432\u0433\u0416", "\u05d0\u05d1\u0627\u0628",
         "\u4f60\u597d\u4e16\u754c\u3042\u30a2\uac00\u1100\u1161\u11a8", "\u0663\u0967\u00bd\u2167\u2460\u3007", "\U0001f600\U0001f469\u200d\ufe0f\U0001f3fd\U0001f1e9", "\x00\x01\x1b\x7f\x9f", "\U0001d7ce\U00010400\U0001e900\U000e0001"]
WORDS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", " the", "The", "ing", "\r\n", "   ", "<|endoftext|>"]


def random_string(r):
    pools = r.choices(POOLS, k=r.randint(1, 4))
    out = []
    for _ in range(r.choice((1, 3, 8, 20, 40))):
        if r.random() < 0.15:
            out.append(r.choice(WORDS))
        elif r.random() < 0.05:
            c = r.randrange(0x110000)
            out.append(chr(c) if not 0xD800 <= c < 0xE000 else "?")
        else:
            out.append(r.choice(r.choice(pools)))
    return "".join(out).encode()


def random_bytes(r):
    text = bytearray(random_string(r))
    for _ in range(r.randint(1, 4)):
        text.insert(r.randint(0, len(text)), r.choice((0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xFF, r.randrange(256))))
    return bytes(text)


def ours(pipe, root, texts):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "tokenizer.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(root, f)
        data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
        out = subprocess.run([pipe, path, "special"], input=data, stdout=subprocess.PIPE, check=True).stdout
    ids, at = [], 0
    while at < len(out):
        n = struct.unpack_from("<I", out, at)[0]
        ids.append(list(struct.unpack_from(f"<{n}I", out, at + 4)))
        at += 4 + 4 * n
    return ids


def theirs(ref, texts):
    try:
        return [e.ids for e in ref.tokenizer.encode_batch([t.decode() for t in texts], add_special_tokens=False)]
    except UnicodeDecodeError:
        return [ref.ids(t) for t in texts]


def read_pieces(paths, size=1 << 18):
    for path in paths:
        with open(path, "rb") as f:
            text = f.read().decode(errors="replace")
        for i in range(0, len(text), size):
            yield text[i:i + size].encode()


def compare(a):
    with open(a.tokenizer, encoding="utf-8") as f:
        base = json.load(f)
    base["model"]["vocab"] = {k: v for k, v in base["model"]["vocab"].items() if k != "<|endoftext|>"}
    failed = 0
    for name, parts in configurations(len(base["model"]["vocab"])).items():
        if a.config and name not in a.config:
            continue
        root = configured(base, parts)
        ref = Reference(root)
        r = random.Random(a.seed)
        sets = [("files", list(read_pieces(a.files)))]
        for start in range(0, a.random, 100000):
            sets.append(("random strings", [random_string(r) for _ in range(min(100000, a.random - start))]))
        if not (root["added_tokens"] or root["normalizer"]):
            sets.append(("invalid UTF-8", [random_bytes(r) for _ in range(a.random // 50)]))
        totals = {}
        for kind, texts in sets:
            for text, x, y in zip(texts, ours(a.pipe, root, texts), theirs(ref, texts), strict=True):
                t = totals.setdefault(kind, [0, 0, 0, 0])
                t[0] += 1
                t[1] += len(text)
                t[2] += len(y)
                t[3] += x != y
                if x != y and t[3] <= 3:
                    at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                    print(f"  {name}: {text[:100]!r}: token {at}: ours {x[at:at + 4]}, theirs {y[at:at + 4]}")
        for kind, (count, size, tokens, bad) in totals.items():
            print(f"{name:13} {kind:15} {count:8} texts {size:11} bytes {tokens:11} tokens  {bad} differ", flush=True)
            failed += bad
    return failed > 0


# --- command line ---


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    g = commands.add_parser("golden")
    g.add_argument("--check", action="store_true")
    c = commands.add_parser("compare")
    c.add_argument("files", nargs="*")
    c.add_argument("--tokenizer", required=True)
    c.add_argument("--pipe", default="build/tokenize_pipe")
    c.add_argument("--random", type=int, default=100000)
    c.add_argument("--seed", type=int, default=1)
    c.add_argument("--config", action="append")
    a = parser.parse_args()
    start = time.time()
    failed = golden(a.check) if a.command == "golden" else compare(a)
    print(f"{'FAILED' if failed else 'done'} in {time.time() - start:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
