"""Makes a Hugging Face GPT-2 directory of nanoGPT's ckpt.pt, which the engine reads:
    nanogpt_to_hf.py out/ckpt.pt DIR [--tokenizer TOKENIZER_DIR]
    build/train_gpt sample --from DIR --prompt "..."

nanoGPT stores linear layers as (out,in), Hugging Face's GPT-2 as (in,out). A model without biases gets biases of zero,
with which it computes the same. Its GELU is the exact one, the engine's the tanh form of GPT-2: they differ by at most
0.0005. --tokenizer copies the tokenizer's files of another directory, such as data/gpt2.
"""
import argparse
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def tensors_of(state):
    out = {}
    for name, value in state.items():
        name = name.removeprefix("_orig_mod.")  # of a compiled model
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
            continue  # the causal mask; the head is the token embedding
        if name.endswith(TRANSPOSED):
            value = value.t()
        out[name] = value.to(torch.float32).contiguous()
    for name in list(out):  # biases that are left out are zero
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and "wte" not in name and "wpe" not in name and bias not in out:
            size = out[name].shape[-1]
            out[bias] = torch.zeros(size)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("directory")
    parser.add_argument("--tokenizer")
    a = parser.parse_args()
    checkpoint = torch.load(a.checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or "model_args" not in checkpoint or "model" not in checkpoint:
        sys.exit(f"{a.checkpoint}: has no \"model\" and \"model_args\": not a ckpt.pt of nanoGPT")
    args = checkpoint["model_args"]
    os.makedirs(a.directory)
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "n_layer": args["n_layer"], "n_head": args["n_head"], "n_embd": args["n_embd"],
        "n_positions": args["block_size"], "vocab_size": args["vocab_size"], "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    with open(os.path.join(a.directory, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    save_file(tensors_of(checkpoint["model"]), os.path.join(a.directory, "model.safetensors"), {"format": "pt"})
    for name in TOKENIZER_FILES:
        source = os.path.join(a.tokenizer, name) if a.tokenizer else ""
        if a.tokenizer and os.path.exists(source):
            shutil.copy(source, a.directory)
    print(f"{a.directory}: {args['n_layer']} layers, {args['n_embd']} channels, vocabulary {args['vocab_size']}")


if __name__ == "__main__":
    main()
