"""Single operations in float64, in cases where fp32 implementations often fail. Writes test/golden/ops.safetensors.

Forward results come from the definitions, gradients from automatic differentiation of them. Inputs are F32 (I32 for
targets), results F64. Where fp32 storage alone would make a case ill-conditioned, the inputs are chosen so that the
critical intermediate is exact in fp32. A careful implementation can therefore meet one tolerance everywhere, 1e-5 of
the largest element with the exceptions noted below. One with a short cut (variance as E[x^2]-E[x]^2, softmax without
its maximum, a maximum that starts at 0 or -1e4) fails by orders of magnitude.

norm.<case>.{inp,weight,bias,dout,dresidual} -> {out,mean,rstd,dinp,dweight,dbias}       shapes (N,C), (C), (N)
    dinp includes dresidual, the gradient that goes past the norm.
    random      N=5 C=13, rows of different offset and scale
    offset      N=4 C=7: 4096 + d, d multiples of 1/8 with sum zero: the mean is exact, the one-pass variance has no digit
    flat        N=3 C=6: rows of one value (0, 3, -1024): variance 0, rstd = 1/sqrt(1e-5), out = bias
    narrow      N=3 C=1: out = bias, dinp = dresidual
    large       N=2 C=9: values around 1e15, whose squares still fit; rstd around 1e-15

loss.<case>.{logits,targets} -> {losses,dlogits}        (N,Vp), (N), (N), (N,Vp); metadata loss.<case>.V, loss.<case>.dloss
    Columns V..Vp-1 are padding: they hold 30000 and must not count; dlogits is 0 there and in rows with target -1.
    random      N=7 V=37 Vp=40, a third of the targets ignored
    In fp32 the loss is (max - target's logit) + log(sum exp(x - max)): a log-sum-exp near 1e4 has lost 5e-4 by rounding.
    extreme     N=11 V=11 Vp=16, logits up to 1e4: dominant target; dominant other (loss 2e4); two and all equal at +1e4
                and at -1e4; one step of 1 at 1e4; ignored; a slope of 1000; zeros; dominant first and last column
    single      N=2 V=1 Vp=8: loss 0

attn.<case>.{qkv,dout} -> {out,lse,dqkv}            (B,T,3C), (B,T,C), (B,T,C), (B,NH,T), (B,T,3C); metadata attn.<case>.NH
    random      B=2 T=5 NH=2 HS=3
    equal       B=1 T=6 NH=1 HS=4, all rows the same: every row attends uniformly; lse = score + log(t+1)
    one_hot     B=1 T=9 NH=2 HS=4, integer q and k with scores from -12000 to 12000, exact in fp32, and one clear winner per
                row: P is 0 or 1, lse is the winner's score, dq and dk vanish
    negative    B=1 T=8 NH=1 HS=4: every score below -12000 (exact), neighbours apart by 0.5: a softmax whose running
                maximum does not start at -inf loses it. lse near -12000 is itself rounded to fp32 (half an ulp: 5e-4),
                which bounds what the backward pass can reach from it: allow 1e-3 of the largest element for dqkv.
    one         B=3 T=1 NH=2 HS=5: out = v, dv = dout, the rest 0

gelu.{inp,dout} -> {out,dinp}    (n) from -10 to 10, denser in the tails, 0, -0.0 and denormals.
    In the negative tail 1+tanh cancels in fp32: judge by absolute error against max(1,|x|), about 1e-6.
gelu_far.{inp,dout} -> {out,dinp}   (n) up to +-1e30, where x^3 (and x^2) overflow fp32: out is x or 0, dinp is dout or 0,
    and 0*inf must not make a NaN.

embed.{tokens,wte,wpe,dout} -> {out,dwte,dwpe}   B=3 T=5 C=7 V=6 maxT=8: few tokens, so that rows of dwte add up; token 0
    and the last one are used, one is not; positions from t0 = 0.
"""
import numpy as np
import torch

import golden
import gpt2_float64 as gpt2

torch.set_num_threads(1)


def differentiate(function, inputs, dout):
    """Value of function(**inputs) and the gradients of sum(value * dout) with respect to each input."""
    x = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in inputs.items()}
    out = function(**x)
    (out * torch.tensor(dout, dtype=torch.float64)).sum().backward()
    return out.detach().numpy(), {name: value.grad.numpy() for name, value in x.items()}


def norm_case(tensors, random, case, inp, dout_std=1.0):
    N, C = inp.shape
    weight = golden.normal32(random, C, 0.5, 1.0)
    bias = golden.normal32(random, C, 0.5)
    dout = golden.normal32(random, (N, C), dout_std)
    dresidual = golden.normal32(random, (N, C), 1.0)
    out, gradient = differentiate(gpt2.layernorm, {"x": inp, "weight": weight, "bias": bias}, dout)
    x = inp.astype(np.float64)
    mean = x.mean(axis=1)
    rstd = 1.0 / np.sqrt(((x - mean[:, None]) ** 2).mean(axis=1) + 1e-5)
    values = {
        "inp": inp, "weight": weight, "bias": bias, "dout": dout, "dresidual": dresidual,
        "out": out, "mean": mean, "rstd": rstd,
        "dinp": gradient["x"] + dresidual, "dweight": gradient["weight"], "dbias": gradient["bias"],
    }
    tensors.update({f"norm.{case}.{key}": value for key, value in values.items()})


def norm(tensors):
    random = np.random.RandomState(3000)
    rows = np.array([[1.0], [0.01], [30.0], [1.0], [3.0]])
    offsets = np.array([[0.0], [0.01], [-20.0], [5.0], [1.0]])
    norm_case(tensors, random, "random", (random.standard_normal((5, 13)) * rows + offsets).astype(np.float32))
    steps = np.array([[1, -1, 2, -2, 3, -3, 0], [1, 1, 1, 1, 1, 1, -6], [0, 0, 0, 1, -1, 0, 0], [8, -7, -1, 4, -4, 2, -2]])
    norm_case(tensors, random, "offset", (4096.0 + steps / 8.0).astype(np.float32))
    norm_case(tensors, random, "flat", np.repeat(np.array([[0.0], [3.0], [-1024.0]]), 6, axis=1).astype(np.float32))
    norm_case(tensors, random, "narrow", np.array([[2.0], [-3.5], [0.0]], dtype=np.float32))
    norm_case(tensors, random, "large", golden.normal32(random, (2, 9), 1e15))


def loss_case(tensors, metadata, case, logits, targets, Vp, dloss):
    N, V = logits.shape
    padded = np.full((N, Vp), 30000.0, dtype=np.float32)
    padded[:, :V] = logits
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    losses, _ = gpt2.cross_entropy(x[None], torch.tensor(targets, dtype=torch.int64)[None])
    (losses.sum() * float(dloss)).backward()
    dlogits = np.zeros((N, Vp))
    dlogits[:, :V] = x.grad.numpy()
    values = {"logits": padded, "targets": targets, "losses": losses[0].detach().numpy(), "dlogits": dlogits}
    tensors.update({f"loss.{case}.{key}": value for key, value in values.items()})
    metadata[f"loss.{case}.V"] = V
    metadata[f"loss.{case}.dloss"] = dloss


def loss(tensors, metadata):
    random = np.random.RandomState(3100)
    targets = random.randint(0, 37, 7).astype(np.int32)
    targets[[0, 4]] = -1
    targets[[1, 6]] = 0, 36
    loss_case(tensors, metadata, "random", golden.normal32(random, (7, 37), 4.0), targets, 40, 0.25)

    V = 11
    rows = np.full((11, V), -1e4)
    rows[0, 3] = 1e4                                # target dominates: loss 0
    rows[1, 3] = 1e4                                # another dominates: loss 2e4
    rows[2, [2, 8]] = 1e4                           # two share: log 2
    rows[3, :] = 1e4                                # all equal, high: log V
    rows[4, :] = -1e4                               # all equal, low: log V
    rows[5, :], rows[5, 6] = 9999.0, 1e4            # 1 apart at the top
    rows[6, :] = golden.normal32(random, V, 1e4)    # ignored
    rows[7, :] = 1000.0 * np.arange(V) - 5000.0     # a slope
    rows[8, :] = 0.0
    rows[9, 0] = 1e4                                # the maximum in the first column
    rows[10, V - 1] = 1e4                           # ... and in the last
    targets = np.array([3, 7, 8, 0, 10, 5, -1, 9, 4, 1, V - 1], dtype=np.int32)
    loss_case(tensors, metadata, "extreme", rows.astype(np.float32), targets, 16, 0.125)
    loss_case(tensors, metadata, "single", np.array([[5.0], [-1e4]], np.float32), np.array([0, 0], np.int32), 8, 0.5)


def attn_case(tensors, metadata, random, case, q, k, v, NH):
    qkv = np.concatenate([q, k, v], axis=2).astype(np.float32)
    dout = golden.normal32(random, v.shape, 1.0)
    out, gradient = differentiate(lambda qkv: gpt2.attention(qkv, NH)[0], {"qkv": qkv}, dout)
    lse = gpt2.attention(torch.tensor(qkv, dtype=torch.float64), NH)[1].numpy()
    values = {"qkv": qkv, "dout": dout, "out": out, "lse": lse, "dqkv": gradient["qkv"]}
    tensors.update({f"attn.{case}.{key}": value for key, value in values.items()})
    metadata[f"attn.{case}.NH"] = NH


def attn(tensors, metadata):
    random = np.random.RandomState(3200)

    def draw(B, T, C):
        return (golden.normal32(random, (B, T, C), 1.5) for _ in range(3))

    attn_case(tensors, metadata, random, "random", *draw(2, 5, 6), 2)
    q, k, v = draw(1, 1, 4)
    attn_case(tensors, metadata, random, "equal", *(np.repeat(x, 6, axis=1) for x in (q, k, v)), 1)

    # One winner per row: q is long and points along an axis, k's first two components are a permutation. HS = 4, so
    # that the scale 1/2 is exact; scores are q*k/2 with q = +-1500 or +-2000, k in -12..12.
    T = 9
    q, k = np.zeros((1, T, 8)), np.zeros((1, T, 8))
    for h in range(2):
        for t in range(T):
            q[0, t, 4 * h + t % 2] = (2000.0 if t % 3 else -2000.0) - 500.0 * h
        k[0, :, 4 * h] = random.permutation(np.arange(-12, 13))[:T]
        k[0, :, 4 * h + 1] = random.permutation(np.arange(-12, 13))[:T]
    attn_case(tensors, metadata, random, "one_hot", q, k, golden.normal32(random, (1, T, 8), 1.0), 2)

    # Scores q.k/2 = -12288 + j/2: q = (96, 1, 0, 0), k = (-256, j, 0, 0).
    T = 8
    q, k = np.zeros((1, T, 4)), np.zeros((1, T, 4))
    q[0, :, 0], q[0, :, 1] = 96.0, 1.0
    k[0, :, 0], k[0, :, 1] = -256.0, random.permutation(T)
    attn_case(tensors, metadata, random, "negative", q, k, golden.normal32(random, (1, T, 4), 1.0), 1)
    attn_case(tensors, metadata, random, "one", *draw(3, 1, 10), 2)


def gelu(tensors):
    random = np.random.RandomState(3300)
    near = np.concatenate([
        np.linspace(-10.0, -3.0, 29), np.linspace(-3.0, 3.0, 49), np.linspace(3.0, 10.0, 29),
        [0.0, -0.0, 1e-40, -1e-40, 1e-20, -1e-20, 1e-4, -1e-4],
        [-0.7517916, 0.7517916],  # the minimum of the curve, where its slope changes sign
    ]).astype(np.float32)
    far = np.array([s * x for x in (20.0, 50.0, 1e3, 1e4, 1e6, 1e10, 1e13, 1e15, 1e19, 1e25, 1e30) for s in (1, -1)])
    for name, inp in (("gelu", near), ("gelu_far", far.astype(np.float32))):
        dout = golden.normal32(random, inp.shape, 1.0)
        out, gradient = differentiate(gpt2.gelu, {"x": inp}, dout)
        tensors.update({f"{name}.inp": inp, f"{name}.dout": dout, f"{name}.out": out, f"{name}.dinp": gradient["x"]})


def embed(tensors):
    random = np.random.RandomState(3400)
    B, T, C, V, maxT = 3, 5, 7, 6, 8
    tokens = random.choice([0, 1, 2, 4, 5], (B, T)).astype(np.int32)  # 3 is never used
    tokens[0, 0], tokens[2, 4] = 0, V - 1
    wte, wpe = golden.normal32(random, (V, C), 1.0), golden.normal32(random, (maxT, C), 1.0)
    dout = golden.normal32(random, (B, T, C), 1.0)
    index = torch.tensor(tokens, dtype=torch.int64)
    out, gradient = differentiate(lambda wte, wpe: wte[index] + wpe[:T], {"wte": wte, "wpe": wpe}, dout)
    values = {
        "tokens": tokens, "wte": wte, "wpe": wpe, "dout": dout,
        "out": out, "dwte": gradient["wte"], "dwpe": gradient["wpe"],
    }
    tensors.update({f"embed.{key}": value for key, value in values.items()})


def make_golden():
    tensors, metadata = {}, {"written_by": "dev/reference/op_float64.py"}
    norm(tensors)
    loss(tensors, metadata)
    attn(tensors, metadata)
    gelu(tensors)
    embed(tensors)
    return tensors, metadata


def claims():
    """Checks that the cases have the properties that the text above describes."""
    tensors, metadata = make_golden()
    good = True

    def claim(text, holds):
        nonlocal good
        print(f"{'ok  ' if holds else 'FAIL'} {text}")
        good = good and bool(holds)

    def exact(x):
        return np.all(x.astype(np.float32) == x)

    def scores(case, NH):
        qkv = tensors[f"attn.{case}.qkv"].astype(np.float64)
        B, T, C3 = qkv.shape
        HS = C3 // 3 // NH
        q, k, _ = (x.reshape(B, T, NH, HS).transpose(0, 2, 1, 3) for x in np.split(qkv, 3, axis=2))
        return q @ k.transpose(0, 1, 3, 2) / np.sqrt(HS), np.tril(np.ones((T, T), dtype=bool))

    inp = tensors["norm.offset.inp"].astype(np.float64)
    claim("norm.offset: means are exactly 4096", np.all(tensors["norm.offset.mean"] == 4096.0))
    x = tensors["norm.offset.inp"]
    one_pass = np.mean(x * x, axis=1, dtype=np.float32) - np.mean(x, axis=1, dtype=np.float32) ** 2
    claim("norm.offset: one-pass variance in fp32 is wrong by more than half",
          np.all(np.abs(one_pass - inp.var(axis=1)) > 0.5 * inp.var(axis=1)))
    claim("norm.flat: out = bias", np.all(tensors["norm.flat.out"] == tensors["norm.flat.bias"]))
    claim("norm.large: squares of deviations fit fp32",
          np.sum((tensors["norm.large.inp"].astype(np.float64)) ** 2, axis=1).max() < 3e38)
    losses = tensors["loss.extreme.losses"]
    expected = [0.0, 2e4, np.log(2), np.log(11), np.log(11), np.log(1 + np.e ** -1 * 10) + 1, 0, 1000.0, np.log(11), 2e4, 0]
    claim("loss.extreme: losses are the ones written down", np.allclose(losses, expected, rtol=1e-12, atol=1e-12))
    s, mask = scores("one_hot", 2)
    ordered = np.sort(np.where(mask, s, -np.inf), axis=3)
    claim("attn.one_hot: scores exact, up to 1e4 and beyond", exact(s) and np.abs(s[:, :, mask]).max() >= 1e4)
    claim("attn.one_hot: winners ahead by at least 100", np.all((ordered[..., -1] - ordered[..., -2])[:, :, 1:] >= 100.0))
    claim("attn.one_hot: dq and dk vanish", np.all(np.abs(tensors["attn.one_hot.dqkv"][:, :, :16]) < 1e-30))
    s, mask = scores("negative", 1)
    claim("attn.negative: scores exact and below -12000", exact(s) and s.max() < -12000.0)
    claim("attn.equal: lse = score + log(t+1)",
          np.allclose(tensors["attn.equal.lse"][0, 0], scores("equal", 1)[0][0, 0, 0, 0] + np.log(np.arange(1, 7))))
    far = tensors["gelu_far.inp"].astype(np.float64)
    claim("gelu_far: out is x or 0", np.all(tensors["gelu_far.out"] == np.maximum(far, 0.0)))
    claim("gelu_far: dinp is dout or 0", np.all(tensors["gelu_far.dinp"] == np.where(far > 0, tensors["gelu_far.dout"], 0)))
    claim("embed: token 3 is unused", not np.any(tensors["embed.tokens"] == 3) and not np.any(tensors["embed.dwte"][3]))
    return good


if __name__ == "__main__":
    golden.main(
        __doc__,
        [("ops.safetensors", make_golden)],
        [("--claims", "check that the cases are what the description says", claims)],
    )
