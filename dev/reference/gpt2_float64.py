"""GPT-2 in float64, from the definition: the reference for the whole network. Writes
test/golden/gpt_<name>.safetensors.

The network is that of Radford et al. 2019 (layernorm before each half of a block, learned positions, GELU in its tanh
form, output projection tied to the token embedding), in elementary PyTorch operations. The gradients come from
PyTorch's automatic differentiation, so this script shares no formula of a backward pass with the engine.

A golden holds, for one configuration (metadata: n_layer n_head n_embd vocab_size n_positions B T, as strings):
  param.<name>  F32  every parameter, under its Hugging Face name and in that layout: Conv1D weights are (inputs, outputs)
  tokens        I32  (B,T)
  targets       I32  (B,T), -1 where ignored
  logits        F64  (B,T,V)
  losses        F64  (B,T) cross-entropy per position, 0 where ignored
  loss          F64  () mean over the targets that are not ignored
  grad.<name>   F64  d loss / d parameter; for wte the sum of both its uses

A comparison in fp32 must measure errors against the largest element of a tensor, not element by element, because some
gradients are zero in exact arithmetic: the middle third of every c_attn.bias (keys), since a shift of all keys moves
all scores of a row alike, and with T = 1 the query and key parts of c_attn.weight.
"""
import math

import numpy as np
import torch

import golden

torch.set_num_threads(1)  # sums in one order

#        name             L  NH  C   V   P   B  T   what it is for
CONFIGS = {
    "minimal":          (1, 1,  4,   5,  3, 1,  3),  # the smallest thing that is a GPT
    "three_heads":      (2, 3, 12,  37,  7, 2,  7),  # nothing a power of two
    "short_context":    (3, 2, 14,  65, 16, 3, 13),  # T below the model's context; odd head size 7
    "one_token":        (2, 3,  9,  11,  4, 5,  1),  # T = 1: attention is the identity on v
    "ignored_targets":  (1, 2, 10,  23,  9, 3,  9),  # a third of the targets, one whole sequence and both ends ignored
    "wide_vocab":       (1, 2, 16, 129, 17, 1, 17),  # one above a power of two; head size 8
}


class Config:
    def __init__(self, n_layer, n_head, n_embd, vocab_size, n_positions, B, T):
        self.n_layer, self.n_head, self.n_embd = n_layer, n_head, n_embd
        self.vocab_size, self.n_positions = vocab_size, n_positions
        self.B, self.T = B, T


def parameter_shapes(c):
    """Name -> (shape, standard deviation, mean). The deviations are large enough to exercise every nonlinearity:
    activations are of order one, and attention is neither uniform nor one-hot."""
    C = c.n_embd
    shapes = {
        "transformer.wte.weight": ((c.vocab_size, C), 0.6, 0.0),
        "transformer.wpe.weight": ((c.n_positions, C), 0.4, 0.0),
    }
    for i in range(c.n_layer):
        h = f"transformer.h.{i}."
        for norm in ("ln_1", "ln_2"):
            shapes[f"{h}{norm}.weight"] = ((C,), 0.3, 1.0)
            shapes[f"{h}{norm}.bias"] = ((C,), 0.2, 0.0)
        for linear, inputs, outputs in (
            ("attn.c_attn", C, 3 * C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", C, 4 * C),
            ("mlp.c_proj", 4 * C, C),
        ):
            shapes[f"{h}{linear}.weight"] = ((inputs, outputs), 1.0 / math.sqrt(inputs), 0.0)
            shapes[f"{h}{linear}.bias"] = ((outputs,), 0.2, 0.0)
    shapes["transformer.ln_f.weight"] = ((C,), 0.3, 1.0)
    shapes["transformer.ln_f.bias"] = ((C,), 0.2, 0.0)
    return shapes


def draw_parameters(c, random):
    return {
        name: golden.normal32(random, shape, std, mean) for name, (shape, std, mean) in parameter_shapes(c).items()
    }


def draw_tokens(c, random):
    return random.randint(0, c.vocab_size, (c.B, c.T)).astype(np.int32)


def layernorm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)  # biased: over C, not C-1
    return centred / torch.sqrt(variance + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def attention(qkv, n_head):
    """(B,T,3C) -> (B,T,C), and the log-sum-exp of each row's scores (B,NH,T)."""
    B, T, C3 = qkv.shape
    HS = C3 // 3 // n_head
    q, k, v = (part.reshape(B, T, n_head, HS).transpose(1, 2) for part in qkv.split(C3 // 3, dim=2))
    scores = q @ k.transpose(2, 3) / math.sqrt(HS)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, -math.inf)
    lse = torch.logsumexp(scores, dim=3)
    probabilities = torch.exp(scores - lse[..., None])
    return (probabilities @ v).transpose(1, 2).reshape(B, T, C3 // 3), lse


def forward(p, c, tokens):
    """Logits (B,T,V). p: name -> torch tensor of any floating type."""
    x = p["transformer.wte.weight"][tokens] + p["transformer.wpe.weight"][: tokens.shape[1]]
    for i in range(c.n_layer):

        def norm(name):
            return layernorm(x, p[f"transformer.h.{i}.{name}.weight"], p[f"transformer.h.{i}.{name}.bias"])

        def linear(name, y):
            return y @ p[f"transformer.h.{i}.{name}.weight"] + p[f"transformer.h.{i}.{name}.bias"]

        x = x + linear("attn.c_proj", attention(linear("attn.c_attn", norm("ln_1")), c.n_head)[0])
        x = x + linear("mlp.c_proj", gelu(linear("mlp.c_fc", norm("ln_2"))))
    x = layernorm(x, p["transformer.ln_f.weight"], p["transformer.ln_f.bias"])
    return x @ p["transformer.wte.weight"].T


def cross_entropy(logits, targets):
    """Loss per position (0 where the target is -1), and its mean over the others."""
    counted = targets >= 0
    chosen = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    losses = torch.where(counted, torch.logsumexp(logits, dim=2) - chosen, torch.zeros_like(chosen))
    return losses, losses.sum() / counted.sum()


def loss_and_gradients(parameters, c, tokens, targets, dtype=torch.float64):
    """Takes and returns numpy arrays."""
    p = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in parameters.items()}
    logits = forward(p, c, torch.tensor(tokens, dtype=torch.int64))
    losses, loss = cross_entropy(logits, torch.tensor(targets, dtype=torch.int64))
    loss.backward()
    gradients = {name: value.grad.numpy() for name, value in p.items()}
    return loss.detach().numpy(), losses.detach().numpy(), logits.detach().numpy(), gradients


def metadata(c, script):
    keys = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions", "B", "T")
    return {"written_by": f"dev/reference/{script}", **{key: getattr(c, key) for key in keys}}


def draw_case(name):
    c = Config(*CONFIGS[name])
    random = np.random.RandomState(1000 + list(CONFIGS).index(name))
    parameters = draw_parameters(c, random)
    tokens = draw_tokens(c, random)
    targets = draw_tokens(c, random)
    if name == "ignored_targets":
        targets[random.random_sample(targets.shape) < 0.33] = -1
        targets[1, :] = -1
        targets[0, 0] = targets[-1, -1] = -1
    return c, parameters, tokens, targets


def make_golden(name):
    c, parameters, tokens, targets = draw_case(name)
    loss, losses, logits, gradients = loss_and_gradients(parameters, c, tokens, targets)
    tensors = {"tokens": tokens, "targets": targets, "logits": logits, "losses": losses, "loss": loss}
    tensors.update({f"param.{key}": value for key, value in parameters.items()})
    tensors.update({f"grad.{key}": value for key, value in gradients.items()})
    return tensors, metadata(c, "gpt2_float64.py")


def against_hf():
    """The same parameters in transformers' GPT2LMHeadModel, float64."""
    import transformers

    good = True
    for name in CONFIGS:
        c, parameters, tokens, targets = draw_case(name)
        loss, _, logits, gradients = loss_and_gradients(parameters, c, tokens, targets)
        config = transformers.GPT2Config(
            n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, vocab_size=c.vocab_size, n_positions=c.n_positions,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            attn_implementation="eager",
        )
        model = transformers.GPT2LMHeadModel(config).to(torch.float64)
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(torch.tensor(parameters[key]))
        hf_logits = model(torch.tensor(tokens, dtype=torch.int64)).logits
        hf_loss = torch.nn.functional.cross_entropy(
            hf_logits.reshape(-1, c.vocab_size), torch.tensor(targets, dtype=torch.int64).reshape(-1), ignore_index=-1
        )
        hf_loss.backward()
        hf_gradients = {key: value.grad.numpy() for key, value in model.named_parameters()}
        assert hf_gradients.keys() == gradients.keys()
        # Relative to the whole gradient's size: some tensors are zero in exact arithmetic, and must not be divided by noise.
        size = max(np.max(np.abs(value)) for value in gradients.values())
        errors = {
            "loss": golden.relative_error(hf_loss.detach().numpy(), loss),
            "logits": golden.relative_error(hf_logits.detach().numpy(), logits),
            "gradients": max(np.max(np.abs(hf_gradients[key] - gradients[key])) / size for key in gradients),
        }
        bad = [key for key, error in errors.items() if not error <= 1e-12]
        print(f"{name}: transformers {transformers.__version__}: "
              + ", ".join(f"{key} {error:.1e}" for key, error in errors.items()) + (" FAIL" if bad else " ok"))
        good = good and not bad
    return good


def fp32_errors():
    """How far the same network in fp32 lies from the goldens, which is what to expect of an engine in fp32."""
    for name in CONFIGS:
        c, parameters, tokens, targets = draw_case(name)
        loss, _, logits, gradients = loss_and_gradients(parameters, c, tokens, targets)
        loss32, _, logits32, gradients32 = loss_and_gradients(parameters, c, tokens, targets, torch.float32)
        errors = {key: golden.relative_error(gradients32[key], gradients[key]) for key in gradients}
        worst = max(errors, key=errors.get)
        print(f"{name}: loss {float(loss):.4f} error {golden.relative_error(loss32, loss):.1e}, "
              f"logits up to {np.max(np.abs(logits)):.1f} error {golden.relative_error(logits32, logits):.1e}, "
              f"worst gradient {errors[worst]:.1e} ({worst}, up to {np.max(np.abs(gradients[worst])):.1e})")
    return True


if __name__ == "__main__":
    golden.main(
        __doc__,
        [(f"gpt_{name}.safetensors", lambda name=name: make_golden(name)) for name in CONFIGS],
        [
            ("--against-hf", "compare with transformers' GPT2LMHeadModel in float64", against_hf),
            ("--fp32", "print the errors of the same network run in fp32", fp32_errors),
        ],
    )
