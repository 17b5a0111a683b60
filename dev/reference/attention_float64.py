"""Attention probabilities in float64, from a checkpoint's files: the reference for what `train_gpt view --json` says
of a model at work.

    build/train_gpt view --device cpu --from RUN/step-00000100 --prompt "Once upon a time" --json view.json
    python3 dev/reference/attention_float64.py RUN/step-00000100 view.json

Reads config.json and model.safetensors of a GPT-2, Llama, Qwen2, Qwen3 or nanochat, runs the network of its papers
(Radford et al. 2019, Touvron et al. 2023, Qwen Team 2025; Karpathy 2025 as transformers has it) on the tokens of the
JSON with numpy in float64, and compares: attention of every head, logits of the listed next tokens, and that the parts
which the JSON gives of a logit add up to it. Prints the largest differences; status 1 if one is above its bound.
"""
import json
import struct
import sys

import numpy as np


def load(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = data[begin:end]
        if t["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[t["dtype"]])
        tensors[name.removeprefix("transformer.")] = values.astype(np.float64).reshape(t["shape"])
    return tensors


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v):  # (NH,T,HS) each: probabilities (NH,T,T) and output (T,NH*HS)
    T, HS = q.shape[1:]
    score = q @ k.transpose(0, 2, 1) / np.sqrt(HS)
    score = np.where(np.tril(np.ones((T, T), bool)), score, -np.inf)
    P = softmax(score)
    return P, (P @ v).transpose(1, 0, 2).reshape(T, -1)


def heads(x, count):  # (T,C) -> (count,T,HS)
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def gpt2(c, w, tokens):
    def norm(x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + c["layer_norm_epsilon"]) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x, all_P = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)], []
    for l in range(c["n_layer"]):
        b = f"h.{l}."
        q, k, v = (heads(part, c["n_head"]) for part in np.split(linear(norm(x, b + "ln_1"), b + "attn.c_attn"), 3, -1))
        P, out = attend(q, k, v)
        all_P.append(P)
        x = x + linear(out, b + "attn.c_proj")
        fc = linear(norm(x, b + "ln_2"), b + "mlp.c_fc")
        x = x + linear(0.5 * fc * (1 + np.tanh(np.sqrt(2 / np.pi) * (fc + 0.044715 * fc**3))), b + "mlp.c_proj")
    return np.array(all_P), norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def frequencies(c, HS):
    p = {**(c.get("rope_parameters") or {}), **(c.get("rope_scaling") or {})}
    f = (c.get("rope_theta") or p.get("rope_theta", 10000.0)) ** (-np.arange(0, HS, 2) / HS)
    if p.get("rope_type") == "linear":
        return f / p["factor"]
    if p.get("rope_type") != "llama3":
        return f
    turns, low, high = p["original_max_position_embeddings"] * f / (2 * np.pi), p["low_freq_factor"], p["high_freq_factor"]
    ramp = (turns - low) / (high - low)
    return np.select([turns >= high, turns <= low], [f, f / p["factor"]], f * (ramp + (1 - ramp) / p["factor"]))


def rotate(x, c, sign=1):  # (heads,T,HS), the two halves of a head turned against each other
    T, HS = x.shape[1:]
    angle = sign * np.outer(np.arange(T), frequencies(c, HS))
    a, b = x[..., : HS // 2], x[..., HS // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def llama(c, w, tokens):
    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name + ".weight"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    x, all_P = w["model.embed_tokens.weight"][tokens], []
    for l in range(c["num_hidden_layers"]):
        b = f"model.layers.{l}."
        n, NH, NKV = norm(x, b + "input_layernorm"), c["num_attention_heads"], c["num_key_value_heads"]
        q, k, v = (heads(linear(n, b + f"self_attn.{p}_proj"), m) for p, m in (("q", NH), ("k", NKV), ("v", NKV)))
        if b + "self_attn.q_norm.weight" in w:
            q, k = norm(q, b + "self_attn.q_norm"), norm(k, b + "self_attn.k_norm")
        k, v = (np.repeat(y, NH // NKV, 0) for y in (rotate(k, c), v))
        P, out = attend(rotate(q, c), k, v)
        all_P.append(P)
        x = x + linear(out, b + "self_attn.o_proj")
        n = norm(x, b + "post_attention_layernorm")
        gate = linear(n, b + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(n, b + "mlp.up_proj"), b + "mlp.down_proj")
    return np.array(all_P), norm(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def nanochat(c, w, tokens):
    def norm(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c["rms_norm_eps"])

    def linear(x, name):
        return x @ w[name + ".weight"].T

    x, all_P = norm(w["model.embed_tokens.weight"][tokens]), []
    for l in range(c["num_hidden_layers"]):
        b = f"model.layers.{l}."
        n, NH, NKV = norm(x), c["num_attention_heads"], c["num_key_value_heads"]
        q, k, v = (heads(linear(n, b + f"self_attn.{p}_proj"), m) for p, m in (("q", NH), ("k", NKV), ("v", NKV)))
        k, v = (np.repeat(y, NH // NKV, 0) for y in (norm(rotate(k, c, -1)), v))
        P, out = attend(norm(rotate(q, c, -1)), k, v)
        all_P.append(P)
        x = x + linear(out, b + "self_attn.o_proj")
        x = x + linear(np.maximum(linear(norm(x), b + "mlp.fc1"), 0) ** 2, b + "mlp.fc2")
    return np.array(all_P), linear(norm(x), "lm_head")


def main(directory, path):
    config = json.load(open(directory + "/config.json"))
    weights = load(directory + "/model.safetensors")
    said = json.load(open(path))
    arrays = {name: np.array(a["data"], np.float64).reshape(a["shape"]) for name, a in said["arrays"].items()}
    network = {"gpt2": gpt2, "nanochat": nanochat}.get(config["model_type"], llama)
    P, logits = network(config, weights, np.array(said["tokens"]))
    scale, cap = np.abs(logits).max(), config.get("final_logit_softcapping")
    logits = cap * np.tanh(logits / cap) if cap else logits
    listed = np.take_along_axis(logits, arrays["next_token"].astype(int), -1)
    parts = sum(arrays[n] for n in ("token_effect", "position_effect", "constant_effect"))
    parts = parts + sum(arrays[n].sum(axis=tuple(i for i in range(arrays[n].ndim) if i != 1))
                        for n in ("head_effect", "bias_effect", "mlp_effect"))
    results = [("attention", np.abs(P - arrays["attention"]).max(), 1e-5),
               ("logits, of the largest", np.abs(listed - arrays["next_logit"]).max() / scale, 1e-5),
               ("sum of a logit's parts, of the largest", np.abs(parts - arrays["target_logit"]).max() / scale, 1e-5)]
    for name, difference, bound in results:
        print(f"{name}: {difference:.2e} (at most {bound:g})")
    return any(not difference <= bound for _, difference, bound in results)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
