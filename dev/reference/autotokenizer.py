#!/usr/bin/env python3
"""AutoTokenizer of transformers on the directories that the engine writes: it must give the engine's token ids.

    autotokenizer.py [--train build/train_gpt] [--pipe build/tokenize_pipe] [--random 2000] [--config NAME]

For every kind of tokenizer in tokenizer_oracle.py, a model is trained for one step with it, and exported. AutoTokenizer
then encodes the same texts from the checkpoint and from the export. Also compared: the text that ids are decoded to, and
the tokens that begin and end a text with those of config.json, which must not lie beyond the model's vocabulary.
"""
import argparse
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

import tokenizer_oracle as oracle

transformers.logging.set_verbosity_error()
ENDS = ("<|endoftext|>", "</s>")


def directories(a, root, scratch):
    """A checkpoint of one step, and its export."""
    tokenizer, run = os.path.join(scratch, "t.json"), os.path.join(scratch, "run")
    with open(tokenizer, "w", encoding="utf-8") as f:
        json.dump(root, f)
    with open(os.path.join(scratch, "text.txt"), "w", encoding="utf-8") as f:
        f.write(oracle.training_text())
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([a.train, "--text", f.name, "--tokenizer", tokenizer, "--layers", "1", "--channels", "16", "--heads", "2",
                    "--context", "32", "--batch-size", "2", "--steps", "1", "--threads", "1", "--out", run], **quiet)
    export = os.path.join(scratch, "export")
    subprocess.run([a.train, "export", "--from", run, "--to", export], **quiet)
    return glob.glob(os.path.join(run, "step-*"))[0], export


def check(directory, root, texts, expected):
    """The number of things that are wrong."""
    t = transformers.AutoTokenizer.from_pretrained(directory)
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    bad = 0
    for text, ids in zip(texts, expected, strict=True):
        got = t.encode(text.decode(), add_special_tokens=False)
        if got != ids:
            bad += 1
            if bad <= 3:
                print(f"  {text[:60]!r}: ours {ids[:8]}, AutoTokenizer {got[:8]}")
    lossless = not root["normalizer"] and "prefix" not in json.dumps(root["pre_tokenizer"]).replace('prefix_space": false', "")
    if lossless and not any(x["lstrip"] or x["rstrip"] for x in root["added_tokens"]):
        bad += sum(t.decode(ids).encode() != text for text, ids in zip(texts, expected, strict=True))
    if (t.bos_token_id, t.eos_token_id) != (config["bos_token_id"], config["eos_token_id"]) or len(t) > config["vocab_size"]:
        print(f"  bos {t.bos_token_id}, eos {t.eos_token_id}, {len(t)} tokens; config.json says {config['bos_token_id']}, "
              f"{config['eos_token_id']}, {config['vocab_size']}")
        bad += 1
    if t.model_max_length != config["n_positions"]:
        print(f"  model_max_length {t.model_max_length}, n_positions {config['n_positions']}")
        bad += 1
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="build/train_gpt")
    parser.add_argument("--pipe", default="build/tokenize_pipe")
    parser.add_argument("--random", type=int, default=2000)
    parser.add_argument("--config", action="append")
    a = parser.parse_args()
    print("transformers", transformers.__version__)
    r = random.Random(1)
    texts = [s.encode() for s in oracle.SNIPPETS] + [oracle.random_string(r) for _ in range(a.random)]
    base = oracle.train(oracle.training_text(), 1100)
    failed = 0
    for name, parts in oracle.configurations(len(base["model"]["vocab"])).items():
        if (a.config and name not in a.config) or name in oracle.LOSSY:
            continue
        root = oracle.configured(base, parts)
        root["decoder"] = dict(oracle.GPT2, add_prefix_space=True)
        if not root["added_tokens"]:
            end = ENDS[len(name) % 2]
            root["added_tokens"] = [oracle.added(end, len(base["model"]["vocab"]), True)]
        expected = oracle.ours(a.pipe, root, texts)
        with tempfile.TemporaryDirectory() as scratch:
            for kind, directory in zip(("checkpoint", "export"), directories(a, root, scratch)):
                bad = check(directory, root, texts, expected)
                print(f"{name:13} {kind:10} {len(texts)} texts: {bad} differ", flush=True)
                failed += bad
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
