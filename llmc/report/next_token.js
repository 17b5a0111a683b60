'use strict';
/* What comes after a token: probabilities at a temperature, and what top-k and top-p leave of them. */
let topKs = [];
const listTopKs = () => [0, ...new Set([1, 2, 3, 5, 10, 20, 40, 50, 100, 200, 500, 1000, sampling.top_k])]
    .filter((k, i) => i === 0 || k > 0 && k <= K)
  .sort((a, b) => a - b);
function buildSliders() {
  topKs = listTopKs();
  const nearest = (list, x) =>
    list.reduce((best, y, i) => Math.abs(y - x) < Math.abs(list[best] - x) ? i : best, 0);
  $('temperature').max = facts.temperatures.length;
  $('temperature').value = sampling.temperature === 0 ? 0
      : 1 + nearest(facts.temperatures, sampling.temperature);
  $('top-k').max = topKs.length - 1;
  $('top-k').value = topKs.indexOf(sampling.top_k) < 0 ? 0 : topKs.indexOf(sampling.top_k);
  $('top-p').value = Math.max(1, Math.round(100 * sampling.top_p));
  for (const id of ['temperature', 'top-k', 'top-p']) $(id).oninput = drawNext;
}
/* exp(logit / temperature) of the most probable tokens, the first one's being 1, and of all others together.
 * `place` is that of the temperature in facts.temperatures; -1 is 0, at which only the first has a weight. */
function weightsOf(t, place) {
  const logits = array('next_logit').subarray(t * K, t * K + K), tau = facts.temperatures[place];
  return {ids: array('next_token').subarray(t * K, t * K + K),
    weights: Array.from(logits, (x, i) => place < 0 ? Number(i === 0) : Math.exp((x - logits[0]) / tau)),
    rest: place < 0 ? 0 : array('next_rest')[t * facts.temperatures.length + place]};
}
/* Probabilities of the next token at temperature 1: of the listed ones, by token. */
function nextOf(t) {
  const one = facts.temperatures.findIndex(x => Math.abs(x - 1) < 1e-9);
  const {ids, weights, rest} = weightsOf(t, one), sum = weights.reduce((a, b) => a + b, rest);
  return new Map(weights.map((w, i) => [ids[i], w / sum]));
}
/* As llmc/model/sampler.c narrows the choice. `weights` are of the listed tokens, `rest` of all others
 * together. */
function narrow(weights, rest, k, p) {
  const V = vocabulary.length;
  const n = k > 0 ? Math.min(k, K) : K, listed = weights.slice(0, n).reduce((a, b) => a + b, 0);
  const total = k > 0 ? listed : listed + rest;
  if (p >= 1) return {kept: n, sum: total, exact: true, others: k === 0 && K < V};
  let sum = 0, kept = 0;
  while (kept < n && (kept === 0 || sum < p * total)) sum += weights[kept++];
  return sum >= p * total || k > 0 ? {kept, sum, exact: true}
      : {kept, sum: p * total, exact: false, others: true};
}
function drawNext() {
  const V = vocabulary.length;
  const t = state.t, step = Number($('temperature').value), k = topKs[Number($('top-k').value)],
      p = Number($('top-p').value) / 100;
  const tau = step === 0 ? 0 : facts.temperatures[step - 1], {ids, weights, rest} = weightsOf(t, step - 1);
  $('temperature-value').textContent = tau === 0 ? '0 (the most probable)' : String(Number(tau.toFixed(3)));
  $('top-k-value').textContent = k === 0 ? 'all' : String(k);
  $('top-p-value').textContent = p >= 1 ? 'all' : p.toFixed(2);
  const cut = tau === 0 ? {kept: 1, sum: 1, exact: true} : narrow(weights, rest, k, p), list = [];
  for (let i = 0; i < Math.min(15, K); i++) {
    const is = i < cut.kept, x = is ? weights[i] / cut.sum : 0;
    list.push(element('span', {class: 'name token' + (is ? '' : ' cut')}, named(ids[i])),
      bar([{value: x, colour: 'var(--bar)'}], 1),
      element('span', {class: 'number' + (is ? '' : ' dim')}, is ? percent(x) : 'cut off'));
  }
  $('next').replaceChildren(...list);
  const kept = cut.exact ? (cut.others ? V : cut.kept) : `more than ${K}`;
  $('kept').textContent = `${kept} of ${V} tokens ${kept === 1 ? 'is' : 'are'} left to choose from` +
    (cut.exact ? '.' : '; the probabilities shown are right to the share of one rare token.');
}
