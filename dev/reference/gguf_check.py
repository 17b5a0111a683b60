"""Compares an exported GGUF file with the model directory it came from, by the reference packages gguf, safetensors and
transformers. Writes nothing.
    gguf_check.py MODEL.gguf DIR      every tensor (names, shapes, values within the rounding of its type), the
                                      hyperparameters, and the tokenizer token by token

q8_0 is also compared bit for bit with the gguf package's own quantization. The exit status is 0 if everything passed.
"""
import argparse
import json
import os
import re
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # only local directories, ever

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type
from safetensors import safe_open

# llama.cpp's names; matrices of Hugging Face's Conv1D are stored transposed there
NAMES = {
    "token_embd.weight": ("wte.weight", False), "position_embd.weight": ("wpe.weight", False),
    "output_norm.weight": ("ln_f.weight", False), "output_norm.bias": ("ln_f.bias", False),
    "attn_norm.weight": ("ln_1.weight", False), "attn_norm.bias": ("ln_1.bias", False),
    "attn_qkv.weight": ("attn.c_attn.weight", True), "attn_qkv.bias": ("attn.c_attn.bias", False),
    "attn_output.weight": ("attn.c_proj.weight", True), "attn_output.bias": ("attn.c_proj.bias", False),
    "ffn_norm.weight": ("ln_2.weight", False), "ffn_norm.bias": ("ln_2.bias", False),
    "ffn_up.weight": ("mlp.c_fc.weight", True), "ffn_up.bias": ("mlp.c_fc.bias", False),
    "ffn_down.weight": ("mlp.c_proj.weight", True), "ffn_down.bias": ("mlp.c_proj.bias", False),
}


def stored(directory):
    files = ["model.safetensors"]
    index = os.path.join(directory, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            files = sorted(set(json.load(file)["weight_map"].values()))
    tensors = {}
    for name in files:
        with safe_open(os.path.join(directory, name), framework="pt") as file:
            for key in file.keys():
                tensors[key.removeprefix("transformer.")] = file.get_tensor(key).to(torch.float32).numpy()
    return {k: v for k, v in tensors.items() if k != "lm_head.weight" and not k.endswith((".attn.bias", ".masked_bias"))}


def tolerance(type_, found, scale):
    """How far a value may be from the original: half a unit in the last place of its type."""
    if type_ == Type.F32:
        return np.zeros_like(found)
    if type_ == Type.F16:
        return np.abs(found) * 2.0**-11 + 2.0**-25
    if type_ == Type.BF16:
        return np.abs(found) * 2.0**-8
    return scale * (0.5 + 127 * 2.0**-11)


def check_tensors(reader, originals):
    good, left, types = True, dict(originals), {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", tensor.name)
        short, turned = NAMES.get(match[2] if match else tensor.name, (None, False))
        name = f"h.{match[1]}.{short}" if match else short
        if tensor.name == "output.weight":  # the tied head, stored for older readers
            name, short = "wte.weight", "wte.weight"
        original = originals.get(name)
        left.pop(name, None)
        if original is None:
            print(f"  {tensor.name}: no such tensor in the directory: FAIL")
            good = False
            continue
        original = np.ascontiguousarray(original.T if turned else original)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        type_ = tensor.tensor_type
        types[type_.name] = types.get(type_.name, 0) + 1
        found = gguf.quants.dequantize(tensor.data, type_).reshape(shape) if shape == original.shape else None
        if found is None:
            print(f"  {tensor.name}: shape {shape}, expected {original.shape}: FAIL")
            good = False
            continue
        scale = 0.0
        if type_ == Type.Q8_0:
            blocks = np.ascontiguousarray(tensor.data).reshape(-1, 34)
            scale = np.repeat(blocks[:, :2].copy().view(np.float16).astype(np.float32).reshape(-1), 32).reshape(shape)
            if not np.array_equal(gguf.quants.quantize(original, Type.Q8_0).reshape(-1, 34), blocks):
                print(f"  {tensor.name}: not the blocks that gguf itself makes: FAIL")
                good = False
        worst = np.max(np.abs(found - original) - tolerance(type_, found, scale))
        if not worst <= 0.0:
            print(f"  {tensor.name} ({type_.name}): values differ by {worst:.3g} more than rounding explains: FAIL")
            good = False
    for name in left:
        print(f"  {name} is missing: FAIL")
    good &= not left
    print(f"tensors: {len(reader.tensors)} ({', '.join(f'{n} {t}' for t, n in sorted(types.items()))}): {'ok' if good else 'FAIL'}")
    return good


def check_keys(reader, directory):
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    expected = {
        "general.architecture": "gpt2", "general.type": "model", "gpt2.context_length": config["n_positions"], "gpt2.block_count": config["n_layer"],
        "gpt2.embedding_length": config["n_embd"], "gpt2.feed_forward_length": 4 * config["n_embd"],
        "gpt2.attention.head_count": config["n_head"], "gpt2.vocab_size": config["vocab_size"],
        "gpt2.attention.layer_norm_epsilon": float(np.float32(config.get("layer_norm_epsilon", 1e-5))),
    }
    good = True
    for key, value in expected.items():
        field = reader.get_field(key)
        if field is None or field.contents() != value:
            print(f"  {key} is {field and field.contents()!r}, expected {value!r}: FAIL")
            good = False
    print(f"hyperparameters: {'ok' if good else 'FAIL'}")
    return good, config["vocab_size"]


def check_tokenizer(reader, directory, vocab_size):
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as file:
        source = json.load(file)
    names = {i: token for token, i in source["model"]["vocab"].items()}
    types = {i: 1 for i in names}
    for token in source["added_tokens"]:
        names[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] else 4
    get = lambda key: reader.get_field(f"tokenizer.ggml.{key}").contents()
    tokens, kinds = get("tokens"), get("token_type")
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
    good = len(tokens) == len(kinds) == vocab_size
    for i in range(min(len(tokens), len(kinds))):
        if kinds[i] != types.get(i, 5) or (i in names and tokens[i] != names[i]):
            print(f"  token {i}: {tokens[i]!r} type {kinds[i]}, expected {names.get(i)!r} type {types.get(i, 5)}: FAIL")
            good = False
    good &= len(set(tokens)) == len(tokens) and get("merges") == merges and get("model") == "gpt2"
    print(f"tokenizer: {len(tokens)} tokens, {len(merges)} merges, pre-tokenizer {get('pre')}: {'ok' if good else 'FAIL'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", help="the exported file")
    parser.add_argument("directory", help="the Hugging Face directory or checkpoint it was exported from")
    a = parser.parse_args()
    reader = gguf.GGUFReader(a.gguf)
    good, vocab_size = check_keys(reader, a.directory)
    good &= check_tensors(reader, stored(a.directory))
    good &= check_tokenizer(reader, a.directory, vocab_size)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
