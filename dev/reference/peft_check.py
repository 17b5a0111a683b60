#!/usr/bin/env python3
"""Exchanges LoRA adapters with the PEFT library, in both directions: the same logits as the engine's, from the same files.

    peft_check.py --train_gpt build/train_gpt [--work DIR]

For a GPT-2 and a Llama with grouped heads: `train_gpt --lora` makes an adapter, PEFT loads it, and the model that PEFT
merges must be the one that `export --adapter` writes. Then PEFT trains an adapter of its own on other layers, and
`export --adapter` must write what PEFT merges. The exit status is 0 if all weights agree.
"""
import argparse
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

KINDS = {
    "gpt2": ([], ["c_attn", "mlp.c_proj"]),
    "llama": (["--positions", "rope", "--norm", "rms", "--mlp", "swiglu", "--no-bias", "--kv-heads", "1"], ["q_proj", "v_proj", "gate_proj"]),
}
SMALL = ["--layers", "2", "--channels", "32", "--heads", "2", "--context", "32"]
COMMON = ["--text", "text.txt", "--seq-len", "32", "--batch-size", "2", "--device", "cpu"]


def run(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr.decode(errors='replace')}")


def newest(directory):
    return os.path.join(directory, max(d for d in os.listdir(directory) if d.startswith("step-")))


def load(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def compare(what, merged, exported):
    ours, theirs = load(exported).state_dict(), merged.state_dict()
    missing = set(ours) ^ set(theirs)
    if missing:
        sys.exit(f"{what}: only one side has {sorted(missing)}")
    worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    tokens = torch.arange(32)[None] * 7 % 250
    with torch.no_grad():
        logits = (load(exported)(tokens).logits - merged(tokens).logits).abs().max().item()
    print(f"{what}: weights differ by at most {worst:.2g}, logits by {logits:.2g}")
    if not (worst < 2e-6 and logits < 2e-4):
        sys.exit(1)


def check(program, kind):
    options, modules = KINDS[kind]
    run(program, "--out", kind, "--tokenizer", "bytes", "--steps", "20", *SMALL, *options, *COMMON)
    base = newest(kind)
    run(program, "--out", f"{kind}-lora", "--model", kind, "--lora", "4", "--lora-alpha", "6", "--learning-rate", "0.02", "--steps", "30", *COMMON)
    run(program, "export", "--from", kind, "--adapter", f"{kind}-lora", "--to", f"{kind}-ours", "--type", "f32")
    adapted = PeftModel.from_pretrained(load(base), newest(f"{kind}-lora"))
    parameters = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    print(f"{kind}: PEFT reads {parameters} parameters of adapters")
    if any(p.abs().max() == 0 for n, p in adapted.named_parameters() if "lora_B" in n):
        sys.exit(f"{kind}: an adapter was not trained, or not loaded")
    compare(f"{kind}, trained here", adapted.merge_and_unload(), f"{kind}-ours")

    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=modules, task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2", init_lora_weights=False)
    theirs = get_peft_model(load(base), config)
    theirs.save_pretrained(f"{kind}-peft")
    run(program, "export", "--from", kind, "--adapter", f"{kind}-peft", "--to", f"{kind}-theirs", "--type", "f32")
    compare(f"{kind}, made by PEFT", theirs.merge_and_unload(), f"{kind}-theirs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_gpt", required=True)
    parser.add_argument("--work")
    a = parser.parse_args()
    program = os.path.abspath(a.train_gpt)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(a.work or temporary)
        with open("text.txt", "w") as f:
            f.writelines(f"The {w} is number {i * i % 17}, and the {w} runs.\n" for i in range(400) for w in ("cat", "dog", "cow"))
        for kind in KINDS:
            check(program, kind)


main()
