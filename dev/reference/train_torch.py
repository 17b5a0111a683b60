"""The same GPT-2 training step in PyTorch, as fast as PyTorch makes it without custom kernels: a peer to compare with.

It uses torch.compile over model and loss, bf16 autocast over fp32 weights, scaled_dot_product_attention, fused AdamW
in two groups (matrices decay, vectors do not), gradient clipping, and an embedding padded to a multiple of 128 rows.
Batches are random tokens, or consecutive windows of a token shard (.bin), which are those of `train_gpt --data SHARD
--no-shuffle`. Times come from CUDA events around each step; nothing synchronises within a step.

    python3 dev/reference/train_torch.py --model gpt2 --batch-size 64 --steps 50
    python3 dev/reference/train_torch.py --weights RUN/step-00000001 --data SHARD --expect OTHER/log.jsonl ...

--expect compares the losses with those of a run of train_gpt that started from the same weights; the exit status is 1
if one differs by more than --tolerance. profiling/measure_gpu.sh runs both.
"""
import argparse
import contextlib
import inspect
import json
import math
import os
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

#             layers heads channels
PRESETS = {
    "tiny":        (4, 4, 128),
    "gpt2":        (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large":  (36, 20, 1280),
    "gpt2-xl":     (48, 25, 1600),
}


def options():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default="gpt2", choices=PRESETS)
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--heads", type=int, default=0)
    p.add_argument("--channels", type=int, default=0)
    p.add_argument("--vocab-size", type=int, default=50257)
    p.add_argument("--context", type=int, default=0, help="positions (0: --seq-len, at least 1024)")
    p.add_argument("--weights", help="directory with config.json and model.safetensors to start from")
    p.add_argument("--data", help="token shard (.bin); without it, random tokens")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--seq-len", type=int, default=1024)
    p.add_argument("--micro-steps", type=int, default=1, help="micro-batches per step, whose gradients are added")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--learning-rate", type=float, default=6e-4)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--grad-clip", type=float, default=1.0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--recompute", action="store_true", help="activation checkpointing for every block")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--expect", help="log.jsonl of train_gpt whose losses are compared with these")
    p.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed between losses")
    p.add_argument("--json", help="file for the result as JSON")
    o = p.parse_args()
    layers, heads, channels = PRESETS[o.model]
    o.layers, o.heads, o.channels = o.layers or layers, o.heads or heads, o.channels or channels
    o.context = o.context or max(1024, o.seq_len)
    if o.weights:
        config = json.load(open(os.path.join(o.weights, "config.json")))
        o.layers, o.heads, o.channels = config["n_layer"], config["n_head"], config["n_embd"]
        o.vocab_size, o.context = config["vocab_size"], config["n_positions"]
    return o


# --- the model: Hugging Face's parameter names, weights as (out, in) ---


class Block(nn.Module):
    def __init__(self, C, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2)
                   for y in self.attn["c_attn"](self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.recompute, self.vocab_size = o.recompute, o.vocab_size
        self.wte = nn.Embedding(-(-o.vocab_size // 128) * 128, o.channels)
        self.wpe = nn.Embedding(o.context, o.channels)
        self.h = nn.ModuleList(Block(o.channels, o.heads) for _ in range(o.layers))
        self.ln_f = nn.LayerNorm(o.channels)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 / math.sqrt(2 * o.layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(p, std=0.01 if name == "wpe.weight" else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        with torch.no_grad():
            self.wte.weight[o.vocab_size:] = 0

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        if self.vocab_size < logits.shape[-1]:  # without the padding rows; this copies, so speed is measured without padding
            logits = logits[..., : self.vocab_size]
        return F.cross_entropy(logits.reshape(-1, self.vocab_size).float(), targets.view(-1))

    @torch.no_grad()
    def load(self, directory):
        from safetensors.torch import load_file
        stored = load_file(os.path.join(directory, "model.safetensors"))
        mine = dict(self.named_parameters())
        for name, p in mine.items():
            w = stored.pop("transformer." + name) if "transformer." + name in stored else stored.pop(name)
            if p.dim() == 2 and name.startswith("h."):
                w = w.t()  # Conv1D
            p[: w.shape[0]] = w.float()
        left = [name for name in stored if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight"))]
        if left:
            sys.exit(f"{directory}: tensors that this model has not: {left[:3]}")


# --- data ---


def read_shard(path):
    header = np.fromfile(path, dtype=np.int32, count=256)
    if header[0] not in (20240520, 20240801):
        sys.exit(f"{path}: not a token shard (first word {header[0]})")
    dtype = np.uint16 if header[0] == 20240520 else np.uint32
    return np.fromfile(path, dtype=dtype, offset=1024)[: header[2]].astype(np.int64)


def batches(o):
    """Yields (tokens, targets) on the device without end."""
    B, T = o.batch_size, o.seq_len
    generator = np.random.default_rng(o.seed)
    tokens = read_shard(o.data) if o.data else None
    samples = (len(tokens) - 1) // T if o.data else 0
    at = 0
    while True:
        if tokens is None:
            block = generator.integers(0, o.vocab_size, (B, T + 1))
        else:
            block = np.stack([tokens[i * T : i * T + T + 1] for i in ((at + b) % samples for b in range(B))])
            at = (at + B) % samples
        block = torch.from_numpy(block)
        if o.device.startswith("cuda"):
            block = block.pin_memory()
        block = block.to(o.device, non_blocking=True)
        yield block[:, :-1].contiguous(), block[:, 1:].contiguous()


# --- the optimizer ---


def make_optimizer(model, o):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = {"fused": True} if "fused" in inspect.signature(torch.optim.AdamW).parameters else {}
    return torch.optim.AdamW(groups, lr=o.learning_rate, betas=(0.9, 0.95), eps=1e-8, **fused)


# --- the run ---


class Clock:
    """Seconds between marks: CUDA events on a GPU, read at the end; the wall clock on a CPU."""

    def __init__(self, device):
        self.cuda, self.marks = device.startswith("cuda"), []

    def mark(self):
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])]
        return [b - a for a, b in zip(self.marks, self.marks[1:])]


def compare(losses, path, tolerance):
    """Compares the training losses in a log.jsonl with ours."""
    rows = [json.loads(line) for line in open(path)]
    theirs = [row["loss"] for row in rows if "loss" in row and "lr" in row][: len(losses)]
    if len(theirs) < len(losses):
        sys.exit(f"{path}: {len(theirs)} losses, {len(losses)} are needed")
    worst = max(abs(a - b) for a, b in zip(losses, theirs))
    good = worst <= tolerance  # false for NaN
    print(f"losses of {len(losses)} steps differ from {path} by {worst:.2e} at most; {tolerance:.0e} is allowed")
    return good


def main():
    o = options()
    torch.manual_seed(o.seed)
    torch.set_float32_matmul_precision("highest" if o.dtype == "fp32" else "high")
    model = GPT(o)
    if o.weights:
        model.load(o.weights)
    model.to(o.device).train()
    count = sum(p.numel() for p in model.parameters()) - (model.wte.weight.shape[0] - o.vocab_size) * o.channels
    optimizer = make_optimizer(model, o)
    step_model = torch.compile(model) if o.compile else model
    data = batches(o)
    kind = o.device.split(":")[0]
    cast = torch.autocast(kind, dtype=torch.bfloat16) if o.dtype == "bf16" else contextlib.nullcontext()

    clock, losses = Clock(o.device), []
    clock.mark()
    for _ in range(o.steps):
        loss_of_step = 0.0
        for _ in range(o.micro_steps):
            tokens, targets = next(data)
            with cast:
                loss = step_model(tokens, targets) / o.micro_steps
            loss.backward()
            loss_of_step = loss_of_step + loss.detach()
        if o.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss_of_step)
        clock.mark()
    seconds = clock.seconds()
    losses = [float(x) for x in losses]

    warmup = min(5, o.steps // 2)  # the first ones compile
    steady = seconds[warmup:]
    median = statistics.median(steady)
    tokens = o.batch_size * o.seq_len * o.micro_steps
    flops = 6.0 * count + 6.0 * o.layers * o.channels * o.seq_len
    cuda = kind == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else None
    for i, (loss, s) in enumerate(zip(losses, seconds)):
        print(f"step {i + 1:4d}  loss {loss:.6f}  {1e3 * s:10.2f} ms")
    name = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"PyTorch {torch.__version__} on {name}, {o.dtype}{', compiled' if o.compile else ''}: {count / 1e6:.1f} M "
          f"parameters, B={o.batch_size}, T={o.seq_len}, {tokens} tokens a step")
    print(f"{tokens / median:.0f} tokens/s (median of {len(steady)} steps of {1e3 * median:.2f} ms, best "
          f"{tokens / min(steady):.0f}), {flops * tokens / median / 1e12:.3f} TFLOP/s"
          + (f", peak memory {peak / 2**30:.2f} GiB" if cuda else ""))
    if o.json:
        json.dump({"torch": torch.__version__, "device": name, "dtype": o.dtype, "compiled": o.compile,
                   "tokens_per_step": tokens, "median_seconds": median, "tokens_per_second": tokens / median,
                   "peak_bytes": peak, "losses": losses, "seconds": seconds}, open(o.json, "w"))
    if o.expect and not compare(losses, o.expect, o.tolerance):
        sys.exit(1)


if __name__ == "__main__":
    main()
