"""Exchanges checkpoints with Hugging Face transformers, in both directions. Writes nothing under test/.

Ours to theirs: loads a checkpoint directory that the engine wrote, with AutoModelForCausalLM.from_pretrained, fails
if a key is missing, unexpected or misshaped, and compares logits with the engine's:
    hf_roundtrip.py DIR --logits FILE           FILE: safetensors with `tokens` I32 (B,T) and `logits` F32 or F64 (B,T,V or Vp)
    hf_roundtrip.py DIR --prompt-ids 5 1 7 --greedy 20      prints the continuation that `sample` must give at temperature 0
    hf_roundtrip.py DIR --text "Once upon"      token ids by the directory's tokenizer.json
Theirs to ours: creates a random GPT-2, Llama, Qwen2, Qwen3 or NanoChat directory with save_pretrained, and logits that
the engine must reproduce:
    hf_roundtrip.py --create DIR --layers 2 --dtype bfloat16 --shard-size 20KB --write-logits FILE

The exit status is 0 if all requested checks passed.
"""
import argparse
import json
import math
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # only local directories, ever

import numpy as np
import torch
import transformers
from safetensors import safe_open

import golden

transformers.utils.logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def create_gpt2(a):
    config = transformers.GPT2Config(
        n_layer=a.layers, n_head=a.heads, n_embd=a.embd, vocab_size=a.vocab, n_positions=a.positions, n_inner=a.ff,
        bos_token_id=a.vocab - 1, eos_token_id=a.vocab - 1, tie_word_embeddings=not a.untied,
    )
    return transformers.GPT2LMHeadModel(config)


LLAMAS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "nanochat": (transformers.NanoChatConfig, transformers.NanoChatForCausalLM),
}


def create_llama(a):
    make_config, make_model = LLAMAS[a.family]
    own = {"head_dim": a.head_dim} if a.head_dim else {"head_dim": a.embd // a.heads} if a.family == "qwen3" else {}
    config = make_config(
        num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads or a.heads,
        hidden_size=a.embd, intermediate_size=a.ff or 3 * a.embd, vocab_size=a.vocab,
        max_position_embeddings=a.positions, bos_token_id=a.vocab - 1, eos_token_id=a.vocab - 1,
        tie_word_embeddings=not a.untied, rms_norm_eps=1e-5, **own,
        **({"rope_parameters": {"rope_theta": 10000.0, **json.loads(a.rope)}} if a.rope else {}),
    )
    return make_model(config)


def create(a):
    """A random model as transformers saves it. With --published-names, as the GPT-2 weights were published: without
    "transformer." in the names, and with each block's constant causal mask, which is not a parameter."""
    if a.embd % a.heads:
        sys.exit(f"--embd {a.embd} is not a multiple of --heads {a.heads}")
    model = create_gpt2(a) if a.family == "gpt2" else create_llama(a)
    random = np.random.RandomState(a.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            size = 0.6 if name == "lm_head.weight" else 0.2
            if name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight", "fc2.weight")):
                size = 0.6  # otherwise a tied head mostly repeats the last token, and --greedy shows nothing
            values = golden.normal32(random, shape, size)
            if len(shape) == 1 and name.endswith("weight"):
                values = values + 1  # of a norm
            parameter.copy_(torch.tensor(values))
    model.to(DTYPES[a.dtype]).save_pretrained(a.create, max_shard_size=a.shard_size)
    if a.published_names:
        from safetensors.torch import load_file, save_file

        path = os.path.join(a.create, "model.safetensors")
        if not os.path.exists(path):
            sys.exit("--published-names goes with one file; leave out --shard-size")
        stored = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
        mask = torch.ones(a.positions, a.positions).tril()[None, None]
        for i in range(a.layers):
            stored[f"h.{i}.attn.bias"] = mask.clone()
        save_file(stored, path, metadata={"format": "pt"})
    print(f"created {a.create}: " + ", ".join(sorted(os.listdir(a.create))))


def load(directory, dtype):
    """Returns the model, and whether the directory held exactly its parameters."""
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, output_loading_info=True, local_files_only=True, attn_implementation="eager"
        )
    except Exception as error:  # any objection of transformers is a result of the check, not a crash
        sys.exit(f"{directory}: transformers cannot load it: {type(error).__name__}: {error}: FAIL")
    complaints = {key: value for key, value in info.items() if value}
    print(f"loaded {directory}: {type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters, "
          + (f"FAIL {complaints}" if complaints else "no missing, unexpected or misshaped keys"))
    return model.eval(), not complaints


def stored_differences(directory, model):
    """Compares the tensors in the files with what the model holds, without transformers' own loading in between."""
    index = os.path.join(directory, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            files = sorted(set(json.load(file)["weight_map"].values()))
    state = model.state_dict()
    good, count = True, 0
    for name in files:
        with safe_open(os.path.join(directory, name), framework="pt") as stored:
            for key in stored.keys():
                inside = key if key in state else f"transformer.{key}"
                if inside not in state:
                    print(f"  {name}: {key} is not a parameter (fine for a constant causal mask)")
                    continue
                count += 1
                if not torch.equal(stored.get_tensor(key).to(state[inside].dtype), state[inside]):
                    print(f"  {name}: {key} differs from the loaded model: FAIL")
                    good = False
    print(f"stored tensors: {count} of {len(files)} file(s) equal the loaded ones" if good else "stored tensors: FAIL")
    return good


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.int64)).logits.to(torch.float64).numpy()


def compare_logits(model, path, tolerance):
    with safe_open(path, framework="numpy") as file:
        missing = {"tokens", "logits"} - set(file.keys())
        if missing:
            print(f"{path}: no tensor named {' or '.join(sorted(missing))}: FAIL")
            return False
        tokens, ours = file.get_tensor("tokens"), file.get_tensor("logits").astype(np.float64)
    V = model.config.vocab_size
    if tokens.ndim != 2 or ours.ndim != 3 or ours.shape[:2] != tokens.shape or ours.shape[2] < V:
        print(f"{path}: tokens {tokens.shape} and logits {ours.shape}, expected (B,T) and (B,T,V >= {V}): FAIL")
        return False
    theirs = logits_of(model, tokens)
    ours = ours[:, :, :V]
    finite = bool(np.all(np.isfinite(ours)))
    absolute = np.max(np.abs(ours - theirs)) if finite else math.inf
    relative = golden.relative_error(ours, theirs)
    top = np.mean(np.argmax(ours, axis=2) == np.argmax(theirs, axis=2))
    good = finite and relative <= tolerance
    print(f"logits {theirs.shape} up to {np.max(np.abs(theirs)):.3f}: max abs error {absolute:.3e}, relative to the largest "
          f"{relative:.3e} (allowed {tolerance:.0e}), same argmax {100 * top:.1f} %: {'ok' if good else 'FAIL'}")
    return good


def greedy(model, prompt, count):
    """Continues by argmax and computes each token from the whole context, without a cache that could hide a mistake.
    Stops when the context is full. Also returns the smallest lead of a chosen token over the next best: where it is
    below the error of fp32, a difference means nothing."""
    ids = list(prompt)
    lead = math.inf
    while len(ids) < min(len(prompt) + count, model.config.max_position_embeddings):
        last = logits_of(model, [ids])[0, -1]
        second, first = np.argsort(last)[-2:]
        lead = min(lead, last[first] - last[second])
        ids.append(int(first))
    return ids[len(prompt):], lead


def write_logits(model, path, a):
    tokens = np.random.RandomState(a.seed + 1).randint(0, model.config.vocab_size, (a.batch, a.tokens)).astype(np.int32)
    with open(path, "wb") as file:
        file.write(golden.encode({"tokens": tokens, "logits": logits_of(model, tokens)}, {"written_by": "hf_roundtrip.py"}))
    print(f"wrote {path}: tokens {tokens.shape}, logits in {model.dtype}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", help="a checkpoint directory to load")
    parser.add_argument("--compute", default="float64", choices=("float32", "float64"), help="type in which transformers computes")
    group = parser.add_argument_group("checks of DIR")
    group.add_argument("--logits", metavar="FILE", help="compare with the tokens and logits in this safetensors file")
    group.add_argument("--tolerance", type=float, default=1e-5, help="relative to the largest logit (default 1e-5)")
    group.add_argument("--prompt-ids", type=int, nargs="+", metavar="ID", help="run these token ids, print the top 5")
    group.add_argument("--text", help="encode this with DIR's tokenizer and run it like --prompt-ids")
    group.add_argument("--greedy", type=int, default=0, metavar="N", help="continue the prompt by N tokens")
    group.add_argument("--write-logits", metavar="FILE", help="write random tokens and their logits by transformers to this file")
    group.add_argument("--batch", type=int, default=2, help="rows of --write-logits (default 2)")
    group.add_argument("--tokens", type=int, default=0, help="tokens per row of --write-logits (default: n_positions)")
    group = parser.add_argument_group("making a directory")
    group.add_argument("--create", metavar="DIR", help="write a random model to DIR; the checks then apply to it")
    group.add_argument("--family", default="gpt2", choices=("gpt2", *LLAMAS))
    group.add_argument("--kv-heads", type=int, default=0, help="of a Llama or Qwen (default: as many as --heads)")
    group.add_argument("--head-dim", type=int, default=0, help="of a Llama or Qwen (default: --embd / --heads)")
    group.add_argument("--rope", metavar="JSON", help="rope_parameters of a Llama or Qwen, such as {\"rope_type\": \"linear\", \"factor\": 2.0}")
    group.add_argument("--ff", type=int, help="width of the MLP (default: 4 times --embd, of a Llama or Qwen 3 times)")
    for flag, value in (("layers", 2), ("heads", 3), ("embd", 12), ("vocab", 37), ("positions", 16), ("seed", 1)):
        group.add_argument(f"--{flag}", type=int, default=value, help=f"(default {value})")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the stored weights")
    group.add_argument("--shard-size", default="5GB", help="largest file, such as 20KB: makes a sharded index")
    group.add_argument("--published-names", action="store_true", help="names as in the published GPT-2 weights")
    group.add_argument("--untied", action="store_true", help="with an output projection (lm_head.weight) that is not tied to the embedding")
    arguments = parser.parse_args()
    if not arguments.create and not arguments.directory:
        parser.error("name a checkpoint directory, or make one with --create DIR")
    if arguments.create and arguments.directory and arguments.create != arguments.directory:
        parser.error("--create DIR already names the directory")
    return arguments


def main():
    a = parse()
    if a.create:
        create(a)
    directory = a.directory or a.create
    model, good = load(directory, DTYPES[a.compute])
    good &= stored_differences(directory, model)
    a.tokens = a.tokens or model.config.max_position_embeddings
    if a.write_logits:
        write_logits(model, a.write_logits, a)
    if a.logits:
        good &= compare_logits(model, a.logits, a.tolerance)
    prompt = a.prompt_ids
    if a.text is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        prompt = tokenizer.encode(a.text)
        print("ids:", *prompt)
        if tokenizer.decode(prompt) != a.text:
            print(f"decodes to {tokenizer.decode(prompt)!r}: FAIL")
            good = False
    if prompt:
        last = logits_of(model, [prompt])[0, -1]
        best = np.argsort(-last)[:5]
        print("next token:", ", ".join(f"{i} ({last[i]:.6f})" for i in best))
        if a.greedy:
            ids, lead = greedy(model, prompt, a.greedy)
            print("greedy:", *ids, f"(smallest lead {lead:.1e})")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
