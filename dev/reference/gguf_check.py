"""Compares an exported GGUF file with the model directory it came from, by the reference packages gguf, safetensors and
transformers. Writes nothing.
    gguf_check.py MODEL.gguf DIR      every tensor (names, shapes, values within the rounding of its type), the
                                      hyperparameters, and the tokenizer token by token
    gguf_check.py MODEL.gguf DIR --prompt "Once upon a time"      also runs llama.cpp (package xllamacpp) and prints
                                      its most probable continuation, which `sample --temperature 0` must give, too

q8_0 is also compared bit for bit with the gguf package's own quantization. The exit status is 0 if everything passed.
"""
import argparse
import json
import os
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
    return {k: v for k, v in tensors.items() if not k.endswith((".attn.bias", ".masked_bias"))}


def gpt2_tensors(config, originals):
    """What the file must hold: llama.cpp's name -> values. Matrices of Conv1D are turned."""
    expected = {"output.weight": originals.get("lm_head.weight", originals["wte.weight"])}  # for older readers
    for name, (short, turned) in NAMES.items():
        block = short.startswith(("attn.", "mlp.", "ln_1", "ln_2"))
        for i in range(config["n_layer"] if block else 1):
            value = originals[f"h.{i}.{short}" if block else short]
            expected[f"blk.{i}.{name}" if block else name] = value.T if turned else value
    return expected


def rope_freqs(config, scaling):
    """As llama.cpp's convert_hf_to_gguf.py computes it."""
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    freqs = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    factor, low, high, length = (scaling[k] for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    divisors = []
    for wave in (2 * np.pi / freqs).tolist():
        smooth = (length / wave - low) / (high - low)
        divisors.append(1.0 if wave < length / high else factor if wave > length / low else 1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def llama_tensors(config, originals):
    """The same for Llama, Qwen2 and Qwen3, with the names that the gguf package itself gives."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
    names = gguf.get_tensor_name_map(arch[config["model_type"]], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    expected = {}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        expected["rope_freqs.weight"] = rope_freqs(config, scaling)
    for name, value in originals.items():
        part = name.split(".")[-2]
        if config["model_type"] == "llama" and part in heads:  # llama.cpp rotates neighbours
            n = heads[part]
            value = value.reshape(n, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        expected[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    return expected


def tolerance(name, type_, found, scale):
    """How far a value may be from the original: half a unit in the last place of its type."""
    if type_ == Type.F32:
        return np.abs(found) * 1e-5 if name == "rope_freqs.weight" else np.zeros_like(found)  # computed in fp32
    if type_ == Type.F16:
        return np.abs(found) * 2.0**-11 + 2.0**-25
    if type_ == Type.BF16:
        return np.abs(found) * 2.0**-8
    return scale * (0.5 + 127 * 2.0**-11)


def check_tensors(reader, expected):
    good, left, types = True, dict(expected), {}
    for tensor in reader.tensors:
        original = left.pop(tensor.name, None)
        if original is None:
            print(f"  {tensor.name}: no such tensor in the directory: FAIL")
            good = False
            continue
        original = np.ascontiguousarray(original)
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
        worst = np.max(np.abs(found - original) - tolerance(tensor.name, type_, found, scale))
        if not worst <= 0.0:
            print(f"  {tensor.name} ({type_.name}): values differ by {worst:.3g} more than rounding explains: FAIL")
            good = False
    for name in left:
        print(f"  {name} is missing: FAIL")
    good &= not left
    print(f"tensors: {len(reader.tensors)} ({', '.join(f'{n} {t}' for t, n in sorted(types.items()))}): {'ok' if good else 'FAIL'}")
    return good


def gpt2_keys(config):
    return {
        "general.architecture": "gpt2", "general.type": "model", "gpt2.context_length": config["n_positions"], "gpt2.block_count": config["n_layer"],
        "gpt2.embedding_length": config["n_embd"], "gpt2.feed_forward_length": 4 * config["n_embd"],
        "gpt2.attention.head_count": config["n_head"], "gpt2.vocab_size": config["vocab_size"],
        "gpt2.attention.layer_norm_epsilon": float(np.float32(config.get("layer_norm_epsilon", 1e-5))),
    }


def llama_keys(config):
    arch, heads = config["model_type"], config["num_attention_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    keys = {
        "context_length": config["max_position_embeddings"], "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
        "vocab_size": config["vocab_size"], "rope.freq_base": float(np.float32(theta)),
        "attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
    }
    if (config.get("rope_scaling") or {}).get("rope_type") == "linear":
        keys["rope.scaling.type"], keys["rope.scaling.factor"] = "linear", float(np.float32(config["rope_scaling"]["factor"]))
    if arch == "qwen3":
        keys["attention.key_length"] = keys["attention.value_length"] = config["head_dim"]
    return {"general.architecture": arch, "general.type": "model", **{f"{arch}.{k}": v for k, v in keys.items()}}


def check_keys(reader, expected):
    good = True
    for key, value in expected.items():
        field = reader.get_field(key)
        if field is None or field.contents() != value:
            print(f"  {key} is {field and field.contents()!r}, expected {value!r}: FAIL")
            good = False
    print(f"hyperparameters: {'ok' if good else 'FAIL'}")
    return good


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


def continue_prompt(path, prompt):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.cpuparams.n_threads = path, 128, 1
    answer = xllamacpp.Server(parameters).handle_completions({"prompt": prompt, "n_predict": 16, "temperature": 0.0})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    print("llama.cpp:", prompt + answer["choices"][0]["text"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", help="the exported file")
    parser.add_argument("directory", help="the Hugging Face directory or checkpoint it was exported from")
    parser.add_argument("--prompt", help="what llama.cpp is to continue")
    a = parser.parse_args()
    reader = gguf.GGUFReader(a.gguf)
    with open(os.path.join(a.directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    gpt2 = config["model_type"] == "gpt2"
    good = check_keys(reader, gpt2_keys(config) if gpt2 else llama_keys(config))
    originals = stored(a.directory)
    good &= check_tensors(reader, gpt2_tensors(config, originals) if gpt2 else llama_tensors(config, originals))
    good &= check_tokenizer(reader, a.directory, config["vocab_size"])
    if a.prompt:
        continue_prompt(a.gguf, a.prompt)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
