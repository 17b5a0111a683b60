"""Llama, Qwen2, Qwen3, Llama with scaled rotary positions, and NanoChat in float64, by transformers: the reference for
models that are not GPT-2. Writes test/golden/family_<name>.safetensors.

Network and gradients are those of transformers' own classes, small and random. A golden holds
  param.<name>  F32  every parameter, under its Hugging Face name
  tokens        I32  (B,T)
  targets       I32  (B,T), -1 where ignored
  losses        F64  (B,T) cross-entropy per position, 0 where ignored
  logits        F64  (B,T,V)
  loss          F64  () mean over the targets that are not ignored
  grad.<name>   F64  d loss / d parameter; for a tied embedding the sum of both its uses
and in its metadata `config`, the model's config.json, which the engine reads.
"""
import json

import numpy as np
import torch
import transformers

import golden

torch.set_num_threads(1)  # sums in one order

B, T = 2, 11
COMMON = dict(
    hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, vocab_size=37,
    max_position_embeddings=16, rope_parameters={"rope_type": "default", "rope_theta": 300.0}, bos_token_id=36,
    eos_token_id=36, attn_implementation="eager",
)
FAMILIES = {
    # heads of keys and values, tied or not, epsilon: each another choice
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM,
              dict(num_key_value_heads=1, head_dim=6, tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM,
              dict(num_key_value_heads=2, hidden_size=16, tie_word_embeddings=True, rms_norm_eps=1e-3)),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM,
              dict(num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-6)),
    # the pairs of a head turn 10.2, 2.4, 0.6 and 0.1 times in 64 tokens: one stays, one is on the ramp, two are slow
    "llama3": (transformers.LlamaConfig, transformers.LlamaForCausalLM,
               dict(num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=128,
                    rope_parameters={"rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0,
                                     "high_freq_factor": 4.0, "original_max_position_embeddings": 64})),
    "linear": (transformers.LlamaConfig, transformers.LlamaForCausalLM,
               dict(num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, rms_norm_eps=1e-5,
                    rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 2.5})),
    # no vector at all; logits that their soft cap bends
    "nanochat": (transformers.NanoChatConfig, transformers.NanoChatForCausalLM,
                 dict(num_key_value_heads=2, hidden_size=16, tie_word_embeddings=False, rms_norm_eps=1e-4,
                      final_logit_softcapping=1.5, pad_token_id=None)),
}


def draw(name):
    make_config, make_model, changes = FAMILIES[name]
    config = make_config(**{**COMMON, **changes})
    model = make_model(config).to(torch.float64)
    random = np.random.RandomState(2000 + list(FAMILIES).index(name))
    with torch.no_grad():
        for key, value in model.named_parameters():
            shape = tuple(value.shape)
            if len(shape) == 1:  # of a norm, or a bias
                numbers = golden.normal32(random, shape, 0.3, 1.0 if key.endswith("weight") else 0.0)
            else:
                numbers = golden.normal32(random, shape, 0.6 if "embed" in key or "head" in key else shape[1] ** -0.5)
            value.copy_(torch.tensor(numbers))
    tokens = random.randint(0, config.vocab_size, (B, T)).astype(np.int32)
    targets = random.randint(0, config.vocab_size, (B, T)).astype(np.int32)
    targets[0, 3] = targets[1, -1] = -1
    return config, model, tokens, targets


def make_golden(name):
    config, model, tokens, targets = draw(name)
    logits = model(torch.tensor(tokens, dtype=torch.int64)).logits
    aims = torch.tensor(targets, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), aims, ignore_index=-1, reduction="none")
    loss = losses.sum() / (aims >= 0).sum()
    loss.backward()
    tensors = {"tokens": tokens, "targets": targets, "logits": logits.detach().numpy(),
               "losses": losses.detach().numpy(), "loss": loss.detach().numpy()}
    for key, value in model.named_parameters():
        tensors[f"param.{key}"] = value.detach().numpy().astype(np.float32)
        tensors[f"grad.{key}"] = value.grad.numpy()
    text = json.loads(config.to_json_string())
    text.pop("transformers_version")
    return tensors, {"written_by": "dev/reference/families_float64.py", "config": json.dumps(text, sort_keys=True)}


if __name__ == "__main__":
    golden.main(
        __doc__, [(f"family_{name}.safetensors", lambda name=name: make_golden(name)) for name in FAMILIES]
    )
