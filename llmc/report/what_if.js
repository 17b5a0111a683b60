'use strict';
/* What if: other words, a head that is off, an edge that is cut, another rule of attention, another
 * checkpoint. A server runs the model again; what it was before and what it is then stand side by side. */
let whatIf = null; /* only on a server */
const question = () => ({checkpoint: whatIf.checkpoint, ...(whatIf.text === null ? {} : {text: whatIf.text}),
    off: whatIf.off, cut: whatIf.cut, attention: whatIf.attention});
const changed = () => whatIf.off.length + whatIf.cut.length + Object.keys(whatIf.attention).length > 0 ||
    whatIf.text !== whatIf.start;

/* Asks again; of several questions in a row, only the last answer counts. */
async function askAgain(changes) {
  const turn = ++whatIf.turn, old = {...whatIf};
  Object.assign(whatIf, changes);
  $('waiting').textContent = 'asking \u2026';
  try {
    if (!whatIf.before || 'checkpoint' in changes || 'start' in changes) {
      const plain = {checkpoint: whatIf.checkpoint, ...(whatIf.start === null ? {} : {text: whatIf.start}),
          off: [], cut: []};
      const answer = await ask('look', plain);
      if (turn !== whatIf.turn) return;
      whatIf.before = passOfAnswer(answer);
      whatIf.milliseconds = answer.milliseconds;
    }
    whatIf.after = null;
    if (changed()) {
      const answer = await ask('look', question());
      if (turn !== whatIf.turn) return;
      whatIf.after = passOfAnswer(answer);
      whatIf.milliseconds = answer.milliseconds;
    }
    $('waiting').textContent = `The model ran in ${whatIf.milliseconds.toFixed(0)} ms.`;
    $('waiting').classList.remove('wrong');
    show(whatIf.after && whatIf.shows === 'after' ? whatIf.after : whatIf.before);
  } catch (e) {
    if (turn !== whatIf.turn) return;
    Object.assign(whatIf, {off: old.off, cut: old.cut, attention: old.attention, text: old.text,
        start: old.start, checkpoint: old.checkpoint, after: old.after});
    $('waiting').textContent = e.message.trim();
    $('waiting').classList.add('wrong');
    drawWhatIf();
  }
}

/* --- the text --- */
const ends = id => word(id).startsWith('<|');
/* The text of the tokens, and where each begins in it; the one that begins a text is none of it. */
function textOf(p) {
  const from = [];
  let text = '';
  p.facts.tokens.forEach((id, t) => {
    from.push(text.length);
    if (!(t === 0 && ends(id))) text += word(id);
  });
  return {text, from: [...from, text.length]};
}
/* The word that a token is part of. */
function wordAt(p, t) {
  const {text, from} = textOf(p), letter = c => c !== undefined && /[\p{L}\p{N}_'-]/u.test(c);
  let a = from[t], b = from[t + 1];
  while (a < b && !letter(text[a])) a++;
  if (a === b) return {a: from[t], b: from[t + 1], word: text.slice(from[t], from[t + 1]).trim()};
  b = a;
  while (a > 0 && letter(text[a - 1])) a--;
  while (letter(text[b])) b++;
  return {a, b, word: text.slice(a, b)};
}
function swapped(p, t, s) {
  const [x, y] = [wordAt(p, t), wordAt(p, s)].sort((m, n) => m.a - n.a), {text} = textOf(p);
  return x.b > y.a ? text : text.slice(0, x.a) + y.word + text.slice(x.b, y.a) + x.word + text.slice(y.b);
}

/* --- the rule of attention --- */
const scores = ['scaled-dot', 'dot', 'cosine', 'l2', 'dot2'];
const masks = ['causal', 'anti-causal', 'full', 'window'];
/* What is chosen, where it is not what the model was trained with. */
function chosenRule() {
  const own = whatIf.before.facts.model, rule = {};
  const score = $('rule-score').value, mask = $('rule-mask').value;
  const window = Math.max(1, Math.round(Number($('rule-window').value) || 8));
  const softcap = Math.max(0, Number($('rule-softcap').value) || 0);
  if (score !== own.score) rule.score = score;
  if (mask !== own.mask || mask === 'window' && window !== own.window) rule.mask = mask;
  if ('mask' in rule && mask === 'window') rule.window = window;
  if (softcap !== own.softcap) rule.softcap = softcap;
  return rule;
}
function drawRule() {
  const own = whatIf.before.facts.model, now = {...own, ...whatIf.attention};
  const list = (select, words) => {
    if (!select.options.length) select.append(...words.map(word => element('option', {value: word}, word)));
  };
  list($('rule-score'), scores);
  list($('rule-mask'), masks.includes(own.mask) ? masks : [...masks, own.mask]);
  $('rule-score').value = now.score;
  $('rule-mask').value = now.mask;
  $('rule-window').value = now.window || 8;
  $('rule-softcap').value = now.softcap;
  $('rule-window-label').hidden = now.mask !== 'window';
}
function ruleInWords() {
  const {score, mask, window, softcap} = whatIf.attention;
  return [score && `score: ${score}`, mask && `mask: ${mask}${window ? ` of ${window}` : ''}`,
    softcap !== undefined && (softcap > 0 ? `soft cap: ${softcap}` : 'no soft cap')]
      .filter(x => x).join(', ');
}

/* --- before and after --- */
const lossAt = t => -Math.log(Math.max(1e-45, array('lens_target_p')[L * T + t]));
function lossOfText() {
  let sum = 0;
  for (let t = 0; t + 1 < T; t++) sum += lossAt(t);
  return T > 1 ? sum / (T - 1) : NaN;
}
/* The same for a byte of the text; 0 bytes: there is no tokenizer. */
const bitsPerByte = () => facts.target_bytes ? lossOfText() * (T - 1) / Math.LN2 / facts.target_bytes : NaN;
/* A bar and a number before, and the same after; a row is {name, key, before, after}. */
function pairs(title, rows, whole, text) {
  const label = words => element('span', {class: 'dim'}, words), half = (value, kind) =>
      bar([{value, colour: `var(--${kind})`}], whole);
  return element('div', {}, element('h3', {}, title), element('div', {class: 'pairs'},
      element('span', {}), label('before'), element('span', {}), label('after'), element('span', {}),
    ...rows.flatMap(({name, key, before, after}) => [name,
      half(before, 'minus'), element('span', {class: 'number was', 'data-before': key}, text(before)),
      half(after, 'bar'), element('span', {class: 'number', 'data-after': key}, text(after))])));
}
/* Of the eight largest shares, by key; `textOfKey` names them. */
function pairsOfShares(title, before, after, textOfKey) {
  return pairs(title, largest(before, after, 8).map(key => {
    const text = textOfKey(key);
    return {name: element('span', {class: 'name token'}, text), key: text, before: before.get(key) || 0,
      after: after.get(key) || 0};
  }), 1, percent);
}
function largest(before, after, n) {
  const keys = [...new Set([...before.keys(), ...after.keys()])],
      size = key => Math.max(before.get(key) || 0, after.get(key) || 0);
  return keys.sort((a, b) => size(b) - size(a)).slice(0, n);
}
function drawComparison() {
  const {before, after} = whatIf;
  $('compare').hidden = !after;
  if (!after) return;
  const fromEnd = T - 1 - state.t, place = () => Math.max(0, T - 1 - fromEnd);
  const [l0, n0, p0, w0, b0] = inPass(before, () => [lossOfText(), nextOf(place()),
      row(state.l, state.h, place()), quoted(facts.tokens[place()]), bitsPerByte()]);
  const [l1, n1, p1, w1, b1] = inPass(after, () => [lossOfText(), nextOf(place()), row(state.l, state.h, place()),
      quoted(facts.tokens[place()]), bitsPerByte()]);
  const parts = [pairsOfShares(`What comes after ${w0 === w1 ? w0 : `${w0}, now ${w1}`}`, n0, n1, named)];
  const name = p => s => inPass(p, () => `${named(facts.tokens[s])} ${s}`);
  const asMap = (p, of) => new Map(Array.from(p, (x, s) => [of(s), x]).filter(([, x]) => x > 0.001));
  const a0 = asMap(p0, name(before)), a1 = asMap(p1, name(after));
  parts.push(pairsOfShares(`Attention of layer ${state.l}, head ${state.h}, from there`, a0, a1, key => key));
  if (sameTokens(before, after)) {
    const losses = p => inPass(p, () => Array.from({length: T - 1}, (_, t) => lossAt(t))), x = losses(before),
        y = losses(after);
    const most = Array.from(x.keys()).sort((i, j) => Math.abs(y[j] - x[j]) - Math.abs(y[i] - x[i]));
    parts.push(pairs('Tokens whose loss changes most', most.slice(0, 8).map(t => ({
      name: element('button', {class: 'name token', onclick: () => choose({t})},
          `${named(after.facts.tokens[t + 1])} ${t + 1}`), before: x[t], after: y[t]})),
      Math.max(1e-9, ...x, ...y), x => fixed(x, 3)));
  }
  $('loss-before').textContent = fixed(l0, 4);
  $('loss-after').textContent = fixed(l1, 4);
  $('loss-change').textContent =
      ` (${l1 < l0 ? '\u2212' : '+'}${Math.abs(100 * (l1 / l0 - 1)).toFixed(1)} %)`;
  $('loss-bits').textContent = known(b0) && known(b1)
      ? `; ${fixed(b0, 4)} and ${fixed(b1, 4)} bits per byte` : '';
  $('comparison').replaceChildren(...parts);
}
function drawWhatIf() {
  const {t, l, h, s} = state, off = hasHead(whatIf.off, l, h);
  const x = wordAt(pass, t), y = wordAt(pass, s);
  const shortly = text => text.length > 18 ? text.slice(0, 17) + '\u2026' : text;
  $('swap').textContent = `swap \u201c${shortly(x.word)}\u201d and \u201c${shortly(y.word)}\u201d`;
  $('swap').disabled = t === s || !x.word || !y.word || x.a === y.a;
  $('head-off').textContent = `switch ${off ? 'on' : 'off'} layer ${l}, head ${h}`;
  $('cut').textContent = `${quoted(facts.tokens[t])} (${t}) may not see ${quoted(facts.tokens[s])} (${s})`;
  const list = [...whatIf.off.map((head, i) => [offInWords(head),
      () => askAgain({off: whatIf.off.filter((_, k) => k !== i)})]),
    ...whatIf.cut.map((cut, i) => [cutInWords(cut),
      () => askAgain({cut: whatIf.cut.filter((_, k) => k !== i)})]),
    ...(ruleInWords() ? [[ruleInWords(), () => askAgain({attention: {}})]] : []),
    ...(whatIf.text !== whatIf.start ? [['another text', () => askAgain({text: whatIf.start})]] : [])];
  $('changes').replaceChildren(...list.map(([text, undo]) =>
      element('li', {}, text + ' ', element('button', {'aria-label': `undo: ${text}`, onclick: undo},
      '\u2715'))));
  $('undo').disabled = $('keep').disabled = list.length === 0;
  $('keep').disabled = whatIf.text === whatIf.start;
  for (const radio of document.querySelectorAll('[name=shows]'))
    radio.checked = radio.value === (whatIf.after ? whatIf.shows : 'before');
  $('shows').hidden = !whatIf.after;
  $('checkpoint').value = whatIf.checkpoint;
  $('checkpoint-value').textContent = known(whatIf.steps[whatIf.checkpoint]) &&
      whatIf.steps[whatIf.checkpoint] >= 0 ? `step ${whatIf.steps[whatIf.checkpoint]}` : '';
  if (document.activeElement !== $('text'))
    $('text').value = whatIf.text === null ? textOf(whatIf.before).text : whatIf.text;
  drawRule();
  drawComparison();
}

async function startServed() {
  const model = await ask('model');
  vocabulary = model.vocabulary;
  whatIf = {steps: model.checkpoints, checkpoint: model.loaded, start: null, text: null, off: [], cut: [],
      attention: {}, before: null, after: null, shows: 'after', turn: 0,
    milliseconds: 0};
  const answer = await ask('look', {});
  whatIf.before = passOfAnswer(answer);
  whatIf.milliseconds = answer.milliseconds;
  $('what-if').hidden = false;
  $('checkpoint').max = model.checkpoints.length - 1;
  $('over-time').hidden = model.checkpoints.length < 2;
  $('read').onclick = () => askAgain({text: $('text').value, cut: []});
  $('text').onkeydown = event => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    $('read').onclick();
  };
  $('swap').onclick = () => askAgain({text: swapped(pass, state.t, state.s), cut: []});
  $('head-off').onclick = () => {
    const {l, h} = state, is = hasHead(whatIf.off, l, h);
    askAgain({off: is ? whatIf.off.filter(([a, b]) => a !== l || b !== h) : [...whatIf.off, [l, h]]});
  };
  $('cut').onclick = () => {
    const {t, s, l, h} = state, edge = {head: [t, s, l, h], layer: [t, s, l, -1],
        all: [t, s, -1, -1]}[$('where').value];
    askAgain({cut: [...whatIf.cut, edge]});
  };
  for (const id of ['rule-score', 'rule-mask', 'rule-window', 'rule-softcap'])
    $(id).onchange = () => askAgain({attention: chosenRule()});
  $('undo').onclick = () => askAgain({off: [], cut: [], attention: {}, text: whatIf.start});
  $('keep').onclick = () => askAgain({start: whatIf.text, off: [], cut: []});
  $('checkpoint').oninput = () => askAgain({checkpoint: Number($('checkpoint').value)});
  for (const radio of document.querySelectorAll('[name=shows]')) radio.onchange = () => {
    whatIf.shows = radio.value;
    show(whatIf.after && radio.value === 'after' ? whatIf.after : whatIf.before);
  };
  start(whatIf.before);
  if (model.stories) startStudy(model.checkpoints);
  $('waiting').textContent = `The model ran in ${whatIf.milliseconds.toFixed(0)} ms.`;
}
const inPage = embedded('facts');
if (inPage) {
  vocabulary = inPage.vocabulary;
  start(passOfPage(inPage));
} else startServed().catch(e => { $('shape').textContent = `No answer: ${e.message}`; });
