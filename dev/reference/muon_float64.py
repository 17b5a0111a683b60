"""Three steps of Muon and of Lion in float64, from the definitions. Writes test/golden/muon_steps.safetensors.

A model of 2 blocks with grouped heads, a gated MLP and an output head of its own, so that c_attn holds matrices of
different heights and c_fc two of them. The gradients are drawn, not computed: only the update is under test. With g the
gradient of step t = 1, 2, 3:
  norm  = sqrt(sum of g^2 over all parameters);  g *= min(1, CLIP/norm)

Muon, for the matrices of the blocks, each one of the stacked matrices by itself:
  m = MU m + (1-MU) g;  u = MU m + (1-MU) g
  u = U S V^T, its singular value decomposition;  s = S / sqrt(sum of S^2)
  five times:  s = A s + B s^3 + C s^5
  w -= LR * FACTOR * (0.2 sqrt(max(rows, columns)) U s V^T + WEIGHT_DECAY w)
and AdamW for everything else, without decay:
  m = B1 m + (1-B1) g;  v = B2 v + (1-B2) g^2;  w -= rate (m/(1-B1^t) / (sqrt(v/(1-B2^t)) + EPS))

Lion, for all parameters, with decay of matrices only:
  w -= rate (sign(B1 m + (1-B1) g) + decay w);  m = B2 m + (1-B2) g

rate = LR * EMBEDDING_FACTOR for embeddings and output head, else LR.

The engine never computes a singular value: it multiplies matrices, by another order of the same polynomial. Here the
polynomial is applied to the singular values, which is the same function by another way.

The golden holds (metadata: the configuration, and every constant above):
  param.<name>               F32  the parameters before the first step, as the engine stores them (outputs,inputs)
  grad.<t>.<name>            F32  the gradients
  muon.<name>, lion.<name>   F64  the parameters after the third step
  muon.m.<name>              F64  Muon's momentum after the third step, of the matrices of the blocks
"""
import math

import numpy as np

import golden

L, HEADS, KV_HEADS, HEAD_SIZE, CHANNELS, FF, V, CONTEXT = 2, 3, 1, 4, 12, 20, 17, 8
STEPS, LR, FACTOR, MU, B1, B2, EPS, WEIGHT_DECAY, CLIP = 3, 0.02, 1.5, 0.9, 0.8, 0.95, 1e-8, 0.1, 12.0
EMBEDDING_FACTOR = 2.5
A, B, C = 3.4445, -4.7750, 2.0315


def shapes():
    """Name -> the heights of the stacked matrices, and the columns (None for vectors)."""
    q, kv = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    found = {"wte.weight": ([V], CHANNELS), "wpe.weight": ([CONTEXT], CHANNELS), "ln_f.weight": ([CHANNELS], None)}
    for layer in range(L):
        found[f"h.{layer}.attn.c_attn.weight"] = ([q, kv, kv], CHANNELS)
        found[f"h.{layer}.attn.c_proj.weight"] = ([CHANNELS], q)
        found[f"h.{layer}.mlp.c_fc.weight"] = ([FF, FF], CHANNELS)
        found[f"h.{layer}.mlp.c_proj.weight"] = ([CHANNELS], FF)
        found[f"h.{layer}.ln_1.weight"] = ([CHANNELS], None)
        found[f"h.{layer}.ln_2.weight"] = ([CHANNELS], None)
    found["lm_head.weight"] = ([V], CHANNELS)
    return found


def is_embedding(name):
    return name in ("wte.weight", "wpe.weight", "lm_head.weight")


def rate_of(name):
    return LR * EMBEDDING_FACTOR if is_embedding(name) else LR


def draw():
    random = np.random.RandomState(3000)
    parameters, gradients = {}, [{} for _ in range(STEPS)]
    for name, (heights, columns) in shapes().items():
        shape = (sum(heights),) if columns is None else (sum(heights), columns)
        parameters[name] = golden.normal32(random, shape, 0.3)
        for g in gradients:
            g[name] = golden.normal32(random, shape, 0.5)
    return parameters, gradients


def orthogonal(u):
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / math.sqrt(np.sum(s * s))
    for _ in range(5):
        s = A * s + B * s**3 + C * s**5
    return 0.2 * math.sqrt(max(u.shape)) * (left * s) @ right


def clipped(gradient):
    norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradient.values()))
    return {name: g.astype(np.float64) * min(1.0, CLIP / norm) for name, g in gradient.items()}


def muon(parameters, gradients):
    w = {name: value.astype(np.float64) for name, value in parameters.items()}
    m = {name: np.zeros_like(value) for name, value in w.items()}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for t in range(1, STEPS + 1):
        for name, g in clipped(gradients[t - 1]).items():
            heights, columns = shapes()[name]
            if name.startswith("h.") and columns is not None:
                m[name] = MU * m[name] + (1.0 - MU) * g
                u = MU * m[name] + (1.0 - MU) * g
                ends = np.cumsum(heights)[:-1]
                u = np.concatenate([orthogonal(part) for part in np.split(u, ends)])
                w[name] = w[name] - LR * FACTOR * (u + WEIGHT_DECAY * w[name])
                continue
            m[name] = B1 * m[name] + (1.0 - B1) * g
            v[name] = B2 * v[name] + (1.0 - B2) * g * g
            step = m[name] / (1.0 - B1**t) / (np.sqrt(v[name] / (1.0 - B2**t)) + EPS)
            w[name] = w[name] - rate_of(name) * step
    return w, m


def lion(parameters, gradients):
    w = {name: value.astype(np.float64) for name, value in parameters.items()}
    m = {name: np.zeros_like(value) for name, value in w.items()}
    for t in range(STEPS):
        for name, g in clipped(gradients[t]).items():
            decay = 0.0 if shapes()[name][1] is None else WEIGHT_DECAY
            w[name] = w[name] - rate_of(name) * (np.sign(B1 * m[name] + (1.0 - B1) * g) + decay * w[name])
            m[name] = B2 * m[name] + (1.0 - B2) * g
    return w


def make_golden():
    parameters, gradients = draw()
    by_muon, momentum = muon(parameters, gradients)
    tensors = {f"param.{name}": value for name, value in parameters.items()}
    for t, gradient in enumerate(gradients):
        tensors.update({f"grad.{t + 1}.{name}": value for name, value in gradient.items()})
    tensors.update({f"muon.{name}": value for name, value in by_muon.items()})
    tensors.update({f"lion.{name}": value for name, value in lion(parameters, gradients).items()})
    for name, (_, columns) in shapes().items():
        if name.startswith("h.") and columns is not None:
            tensors[f"muon.m.{name}"] = momentum[name]
    constants = {
        "layers": L, "heads": HEADS, "kv_heads": KV_HEADS, "head_size": HEAD_SIZE, "channels": CHANNELS, "ff": FF,
        "vocab_size": V, "context": CONTEXT, "steps": STEPS, "lr": LR, "muon_lr_factor": FACTOR,
        "embedding_lr_factor": EMBEDDING_FACTOR, "momentum": MU,
        "beta1": B1, "beta2": B2, "eps": EPS, "weight_decay": WEIGHT_DECAY, "clip": CLIP,
    }
    return tensors, {"generator": "muon_float64.py", **constants}


if __name__ == "__main__":
    golden.main(__doc__, [("muon_steps.safetensors", make_golden)])
