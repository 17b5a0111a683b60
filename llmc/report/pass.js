'use strict';
/* One pass of the model over a text: what the program hands out of it, facts and arrays of numbers, and what
 * follows from these, as llmc/model/inspect.h has the formulas. An array, or one layer of one, is unpacked
 * when it is first wanted. */
function unpack(kind, text) {
  const chars = atob(text), bytes = new Uint8Array(chars.length);
  for (let i = 0; i < chars.length; i++) bytes[i] = chars.charCodeAt(i);
  return kind === 'int32' ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
}
function makePass(facts, read) {
  const unpacked = new Map();
  return {facts, attentions: new Map(), array(name, layer) {
    const id = layer === undefined ? name : name + '.' + layer;
    if (!unpacked.has(id)) unpacked.set(id, read(name, layer, id));
    return unpacked.get(id);
  }};
}
const passOfPage = facts => makePass(facts, (name, layer, id) => {
  const e = $(id), numbers = unpack(e.dataset.kind, e.textContent);
  e.remove();
  return numbers;
});
const passOfAnswer = answer => makePass(answer.facts, (name, layer) => {
  const a = answer.arrays[name], numbers = unpack(a.kind, a.parts[layer || 0]);
  a.parts[layer || 0] = null;
  return numbers;
});
let pass = null, vocabulary = [];
let facts, model, T, L, NH, NKV, HS, K, target, attentions, sampling; /* of the pass that is shown */
const array = (name, layer) => pass.array(name, layer);
/* Makes a pass the one that everything below shows. */
function take(p) {
  pass = p;
  ({facts, attentions} = p);
  ({model, sampling} = facts);
  T = facts.tokens.length;
  [L, NH, NKV, HS] = [model.layers, model.heads, model['kv-heads'], model['head-dim']];
  K = array('next_token').length / T;
  target = array('target');
}
/* What another pass says, without showing it. */
function inPass(p, f) {
  const shown = pass;
  take(p);
  try { return f(); } finally { take(shown); }
}

const sameTokens = (p, q) => p.facts.tokens.length === q.facts.tokens.length &&
    p.facts.tokens.every((id, t) => id === q.facts.tokens[t]);

const keyHead = h => Math.floor(h * NKV / NH);
const isCut = (l, h, t, s) => facts.without.cut.some(([to, from, layer, head]) => to === t && from === s &&
  (layer < 0 || layer === l) && (head < 0 || head === h));
const hasHead = (list, l, h) => list.some(([layer, head]) => layer === l && head === h);
const isOff = (l, h) => hasHead(facts.without.off, l, h);
function queryKey(l, h, t, s, each) {
  const q = array('q', l), k = array('k', l), qi = (t * NH + h) * HS, ki = (s * NKV + keyHead(h)) * HS;
  let sum = 0;
  for (let i = 0; i < HS; i++) {
    const product = q[qi + i] * k[ki + i];
    if (each) each(i, product, q[qi + i], k[ki + i]);
    sum += product;
  }
  return sum;
}
const lse = (l, h, t) => array('lse', l)[h * T + t];
/* The rule of attention, as llmc/ops/attn_rule.h has it: the tokens that token t sees, and a score from q.k,
 * |q|^2 and |k|^2. */
function keysOf(t) {
  const {mask} = model, ahead = mask === 'full' || mask === 'anti-causal';
  return {first: mask === 'anti-causal' ? t : mask === 'window' ? Math.max(0, t - model.window + 1) : 0,
    end: ahead ? T : t + 1};
}
const sees = (t, s) => { const {first, end} = keysOf(t); return s >= first && s < end; };
const hasNorms = () => model.score === 'cosine' || model.score === 'l2';
function scoreWithoutCap(qk, qq, kk) {
  switch (model.score) {
    case 'dot': return qk;
    case 'cosine': return Math.sqrt(HS / ((qq + 1e-6) * (kk + 1e-6))) * qk;
    case 'l2': return (2 * qk - qq - kk) / Math.sqrt(HS);
    case 'dot2': return qk * qk / HS;
    default: return qk / Math.sqrt(HS);
  }
}
function scoreOf(qk, qq, kk) {
  const score = scoreWithoutCap(qk, qq, kk), cap = model.softcap;
  return cap > 0 ? cap * Math.tanh(score / cap) : score;
}
function squareOf(x, at) {
  let sum = 0;
  for (let i = 0; i < HS; i++) sum += x[at + i] * x[at + i];
  return sum;
}
const squareOfQuery = (l, h, t) => squareOf(array('q', l), (t * NH + h) * HS);
const squareOfKey = (l, h, s) => squareOf(array('k', l), (s * NKV + keyHead(h)) * HS);
const score = (l, h, t, s) => scoreOf(queryKey(l, h, t, s), squareOfQuery(l, h, t), squareOfKey(l, h, s));
const share = (l, h, t, s) => !sees(t, s) || isCut(l, h, t, s) ? 0
    : Math.exp(score(l, h, t, s) - lse(l, h, t));
/* Row t of a head's attention, into out[at], out[at + 1] ... */
function fillRow(out, at, l, h, t) {
  const q = array('q', l), k = array('k', l), qi = (t * NH + h) * HS, z = lse(l, h, t);
  const {first, end} = keysOf(t), qq = hasNorms() ? squareOf(q, qi) : 0;
  for (let s = first, ki = (first * NKV + keyHead(h)) * HS; s < end; s++, ki += NKV * HS) {
    let sum = 0;
    for (let i = 0; i < HS; i++) sum += q[qi + i] * k[ki + i];
    out[at + s] = Math.exp(scoreOf(sum, qq, hasNorms() ? squareOf(k, ki) : 0) - z);
  }
  for (const [to, from] of facts.without.cut) if (to === t && isCut(l, h, t, from)) out[at + from] = 0;
}
function attention(l, h) {
  const id = l * NH + h;
  if (!attentions.has(id)) {
    const P = new Float32Array(T * T);
    for (let t = 0; t < T; t++) fillRow(P, t * T, l, h, t);
    attentions.set(id, P);
  }
  return attentions.get(id);
}
function row(l, h, t) {
  const P = attentions.get(l * NH + h), p = P ? P.subarray(t * T, t * T + T) : new Float32Array(T);
  if (!P) fillRow(p, 0, l, h, t);
  return p;
}
function valueTimes(l, h, t, s, each) {
  const v = array('v', l), w = array('write', l), vi = (s * NKV + keyHead(h)) * HS, wi = (t * NH + h) * HS;
  let sum = 0;
  for (let i = 0; i < HS; i++) {
    const product = v[vi + i] * w[wi + i];
    if (each) each(i, product, v[vi + i], w[wi + i]);
    sum += product;
  }
  return sum;
}
const sourceEffect = (l, h, t, s) => array('rstd')[t] * share(l, h, t, s) * valueTimes(l, h, t, s);
const headEffect = (l, h, t) => array('head_effect')[(l * T + t) * NH + h];
