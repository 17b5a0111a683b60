'use strict';
/* The page of a pass: the text with the attention of one token, all heads, the matrix of one, how a score and
 * an effect come about, the residual stream, the next token (next_token.js). A token, a head and a source are
 * chosen; everything is drawn from them. */

/* --- state; the part of the address behind # --- */
const state = {t: 0, l: 0, h: 0, s: 0, all: false, sort: 'attention'};
function chooseHead(t) {
  let best = -1;
  for (let l = 0; l < L; l++) for (let h = 0; h < NH; h++) {
    const e = Math.abs(headEffect(l, h, t));
    if (e > best) { best = e; state.l = l; state.h = h; }
  }
}
function strongest() {
  const p = row(state.l, state.h, state.t);
  let best = state.t;
  for (let s = 0; s < T; s++) if (p[s] > p[best]) best = s;
  return best;
}
function readAddress() {
  const number = (key, end, otherwise) => {
    const n = address.has(key) ? Number(address.get(key)) : NaN;
    return Number.isInteger(n) && n >= 0 && n < end ? n : otherwise;
  };
  state.t = number('t', T, state.t);
  state.l = number('l', L, state.l);
  state.h = number('h', NH, state.h);
  state.s = number('s', T, strongest());
  if (!sees(state.t, state.s)) state.s = strongest();
}
const writeAddress = () => setAddress({t: state.t, l: state.l, h: state.h, s: state.s});
function choose(changes) {
  const before = {...state};
  Object.assign(state, changes);
  if (!('s' in changes) && (state.t !== before.t || state.l !== before.l || state.h !== before.h))
    state.s = strongest();
  writeAddress();
  draw();
}

/* --- text and colours --- */
const word = id => vocabulary[id] ?? '#' + id;
/* Alone, a token shows its spaces. */
const named = id => visible(word(id)).replace(/ /g, '\u2423') || '(empty)';
const quoted = id => `\u201c${named(id)}\u201d`;
const signed = x => (x < 0 ? '\u2212' : '+') + Math.abs(x).toFixed(3);
const percent = p => p >= 0.9995 && p < 1 ? '> 99.9 %' : p > 0 && p < 0.0005 ? '< 0.1 %'
    : (100 * p).toFixed(1) + ' %';

/* One pixel for each value, a number from 0 to 1. */
function fillImage(canvas, width, height, values) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d'), image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  for (let i = 0; i < out.length; i++)
    out[i] = pixels[Math.max(0, Math.min(255, Math.round(255 * values[i])))];
  context.putImageData(image, 0, 0);
}

/* --- the text --- */
let chips = [];
let shown = -1; /* the token whose attention the text shows */
function buildTokens() {
  chips = [];
  $('tokens').replaceChildren($('lines'));
  $('lines').replaceChildren();
  facts.tokens.forEach((id, t) => {
    const text = word(id);
    const e = element('button', {class: 'token' + (t >= facts.prompt_tokens ? ' made' : ''), tabindex: -1},
      visible(text));
    e.onclick = () => choose({t});
    e.onpointerenter = () => showAttention(t);
    e.onpointerleave = () => showAttention(state.t);
    e.onkeydown = event => {
      const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
      const to = event.key === 'Home' ? 0 : event.key === 'End' ? T - 1 : step ? t + step : -1;
      if (to < 0 || to >= T) return;
      event.preventDefault();
      choose({t: to});
      chips[to].focus();
    };
    chips.push(e);
    $('tokens').append(e);
    if (text.includes('\n')) $('tokens').append(element('br'));
  });
  $('made').textContent = facts.prompt_tokens < T ? ' What the model wrote itself is in italics.' : '';
}
function drawLines(t, p) {
  const lines = $('lines'), frame = $('tokens').getBoundingClientRect();
  const top = e => { const r = e.getClientRects()[0] || e.getBoundingClientRect();
    return [r.left + r.width / 2 - frame.left, r.top - frame.top + 2]; };
  const strong = Array.from(p.keys()).filter(s => s !== t && p[s] >= 0.03)
      .sort((a, b) => p[b] - p[a]).slice(0, 12);
  const [x1, y1] = top(chips[t]);
  lines.replaceChildren(...strong.map(s => {
    const [x2, y2] = top(chips[s]), lift = Math.min(26, 8 + Math.abs(x1 - x2) / 14);
    return svg('path', {d: `M${x1} ${y1}C${x1} ${y1 - lift} ${x2} ${y2 - lift} ${x2} ${y2}`,
      'stroke-width': 1 + 3 * p[s], opacity: 0.25 + 0.75 * p[s]});
  }));
}
function showAttention(t) {
  shown = t;
  const p = row(state.l, state.h, t);
  chips.forEach((e, s) => {
    e.classList.toggle('chosen', s === state.t);
    e.classList.toggle('after', !sees(t, s));
    e.tabIndex = s === state.t ? 0 : -1;
    e.title = sees(t, s) ? `token ${s}: ${percent(p[s])} of the attention of token ${t}` : `token ${s}`;
    if (p[s] > 0.002) paint(e, p[s]);
    else e.style.background = e.style.color = '';
  });
  drawLines(t, p);
  showStrips(t);
}

/* --- heads --- */
let squares = [], waiting = [], working = false, seen = null;
function work() {
  const until = performance.now() + 12;
  while (waiting.length && performance.now() < until) {
    const {l, h, canvas} = waiting.shift();
    fillImage(canvas, T, T, attention(l, h));
  }
  working = waiting.length > 0;
  if (working) requestAnimationFrame(work);
}
function buildHeads() {
  const grid = $('heads');
  if (seen) seen.disconnect();
  squares = [];
  waiting = [];
  grid.replaceChildren();
  grid.classList.toggle('fine', T > 60);
  grid.style.gridTemplateColumns = `1.7rem repeat(${NH}, minmax(17px, 76px))`;
  grid.append(element('span', {class: 'label'}));
  for (let h = 0; h < NH; h++) grid.append(element('span', {class: 'label top'}, String(h)));
  seen = new IntersectionObserver(entries => {
    for (const e of entries) if (e.isIntersecting) {
      seen.unobserve(e.target);
      waiting.push(squares[e.target.dataset.index]);
      if (!working) { working = true; requestAnimationFrame(work); }
    }
  }, {rootMargin: '200px'});
  for (let l = 0; l < L; l++) {
    grid.append(element('span', {class: 'label'}, String(l)));
    for (let h = 0; h < NH; h++) {
      const canvas = element('canvas', {class: 'square', width: 1, height: 1}),
          strip = element('canvas', {class: 'row'});
      const mark = element('span', {class: 'mark'});
      const button = element('button', {'data-index': l * NH + h, 'aria-label': `layer ${l}, head ${h}`,
          tabindex: -1},
        canvas, mark, strip);
      button.onclick = () => choose({l, h});
      button.onkeydown = event => {
        const [dl, dh] = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0],
            ArrowDown: [1, 0]}[event.key] || [0, 0];
        if (!dl && !dh || l + dl < 0 || l + dl >= L || h + dh < 0 || h + dh >= NH) return;
        event.preventDefault();
        choose({l: l + dl, h: h + dh});
        squares[(l + dl) * NH + h + dh].button.focus();
      };
      squares.push({l, h, canvas, strip, mark, button});
      grid.append(button);
      seen.observe(button);
    }
  }
}
let stripsOf = -1;
function showStrips(t) {
  if (stripsOf === t) return;
  stripsOf = t;
  requestAnimationFrame(() => {
    if (stripsOf !== t) return;
    for (const {l, h, strip, mark} of squares) {
      fillImage(strip, T, 1, row(l, h, t));
      mark.style.top = `calc((100% - 9px) * ${(t + 0.5) / T})`;
    }
  });
}
function drawHeads() {
  for (const {l, h, button} of squares) {
    const is = l === state.l && h === state.h;
    button.classList.toggle('chosen', is);
    button.classList.toggle('off', isOff(l, h));
    button.setAttribute('aria-pressed', is);
    button.tabIndex = is ? 0 : -1;
    button.title = `layer ${l}, head ${h}: ${signed(headEffect(l, h, state.t))} ` +
      `to the logit of ${quoted(target[state.t])}`;
  }
}

/* --- the matrix --- */
const matrix = {};
function drawMatrix() {
  const canvas = $('matrix'), room = canvas.parentElement.clientWidth, gutter = Math.min(92, room / 4);
  const labels = T <= 30 || (room - gutter - 2) / T >= 10, left = labels ? gutter : 0, top = labels ? 74 : 0;
  const cell = labels ? Math.max(T <= 30 ? 12 : 10, Math.min(26, Math.floor((room - left - 2) / T)))
      : Math.max(2, Math.floor(room / T));
  const ratio = window.devicePixelRatio || 1, width = left + T * cell + 1, height = top + T * cell + 1;
  Object.assign(matrix, {left, top, cell});
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + 'px';
  canvas.style.height = height + 'px';
  const c = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  c.scale(ratio, ratio);
  const small = document.createElement('canvas');
  fillImage(small, T, T, attention(state.l, state.h));
  c.imageSmoothingEnabled = false;
  c.drawImage(small, left, top, T * cell, T * cell);
  c.strokeStyle = colour('--line');
  c.beginPath();
  const half = keysOf(0).end === 1, {first, end} = keysOf(state.t); /* no grid where all is masked */
  for (let i = 0; i <= T; i++) {
    if (cell < 8 && i > 0 && i < T) continue;
    const from = half ? Math.max(0, i - 1) : 0, to = half ? Math.min(T, i + 1) : T;
    c.moveTo(left + i * cell + .5, top + from * cell); c.lineTo(left + i * cell + .5, top + T * cell);
    c.moveTo(left, top + i * cell + .5); c.lineTo(left + to * cell, top + i * cell + .5);
  }
  c.stroke();
  c.strokeStyle = colour('--accent');
  c.lineWidth = 2;
  c.strokeRect(left + first * cell + 1, top + state.t * cell, (end - first) * cell - 1, cell);
  if (!labels) return;
  c.font = `${Math.min(12, cell)}px system-ui, sans-serif`;
  c.textBaseline = 'middle';
  for (let i = 0; i < T; i++) {
    const name = named(facts.tokens[i]), text = name.length > 11 ? name.slice(0, 10) + '\u2026' : name;
    c.fillStyle = colour(i === state.t ? '--accent' : '--dim');
    c.textAlign = 'right';
    c.fillText(text, left - 5, top + (i + .5) * cell, left - 6);
    c.fillStyle = colour(i === state.s ? '--accent' : '--dim');
    c.save();
    c.translate(left + (i + .5) * cell, top - 5);
    c.rotate(-Math.PI / 2);
    c.textAlign = 'left';
    c.fillText(text, 0, 0, top - 6);
    c.restore();
  }
}
function cellOf(event) {
  const frame = $('matrix').getBoundingClientRect();
  const s = Math.floor((event.clientX - frame.left - matrix.left) / matrix.cell);
  const t = Math.floor((event.clientY - frame.top - matrix.top) / matrix.cell);
  return t >= 0 && t < T && sees(t, s) ? {t, s} : null;
}
function read(t, s) {
  $('reading').textContent = `${quoted(facts.tokens[t])} (${t}) gives ${quoted(facts.tokens[s])} (${s}) ` +
    `${percent(share(state.l, state.h, t, s))} of its attention.`;
}
$('matrix').onpointermove = event => { const c = cellOf(event); if (c) read(c.t, c.s); };
$('matrix').onpointerleave = () => read(state.t, state.s);
$('matrix').onclick = event => { const c = cellOf(event); if (c) choose(c); };

/* --- queries, keys, values --- */
function drawProducts(canvas, products, largest) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 120, height = 26;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const c = canvas.getContext('2d'), style = getComputedStyle(document.documentElement), step = width / HS;
  c.scale(ratio, ratio);
  products.forEach((x, i) => {
    c.fillStyle = style.getPropertyValue(x < 0 ? '--minus' : '--bar');
    const size = Math.abs(x) / largest * height / 2;
    c.fillRect(i * step, x < 0 ? height / 2 : height / 2 - size, Math.max(step - .5, .8), size);
  });
}
function drawSources() {
  const {t, l, h} = state, p = row(l, h, t), {first, end} = keysOf(t), shownAtOnce = 10;
  const all = Array.from({length: end - first}, (_, i) => first + i);
  const effects = Array.from({length: T}, (_, s) => sees(t, s) ? sourceEffect(l, h, t, s) : 0);
  const norm = array('value_norm', l);
  const by = {attention: (a, b) => p[b] - p[a], effect: (a, b) => Math.abs(effects[b]) - Math.abs(effects[a]),
    position: (a, b) => a - b}[state.sort];
  all.sort(by);
  const list = state.all ? all : all.slice(0, shownAtOnce);
  const products = list.map(s => {
    const x = [];
    queryKey(l, h, t, s, (i, product) => x.push(product));
    return x;
  });
  const largest = Math.max(1e-9, ...products.map(x => Math.max(...x.map(Math.abs))));
  const canvases = [];
  const rows = list.map((s, n) => {
    const sum = products[n].reduce((a, b) => a + b, 0), canvas = element('canvas', {});
    canvases.push([canvas, products[n]]);
    const name = element('button', {'aria-label': `open token ${s}`}, named(facts.tokens[s]) + ' ',
      element('small', {class: 'dim'}, String(s)));
    const e = element('tr', {class: s === state.s ? 'chosen' : ''}, element('td', {}, name),
      element('td', {class: 'wide'}, canvas), element('td', {class: 'wide'}, fixed(sum, 2)),
      element('td', {class: 'middle'}, fixed(score(l, h, t, s), 2)),
      element('td', {class: 'share', style: `--w: ${100 * p[s]}%`}, percent(p[s])),
      element('td', {}, fixed(p[s] * norm[h * T + s], 3)), element('td', {}, signed(effects[s])));
    e.onclick = () => choose({s});
    return e;
  });
  const total = element('tr', {}, element('td', {class: 'dim'}, `all ${all.length}`),
      element('td', {class: 'wide'}),
    element('td', {class: 'wide'}), element('td', {class: 'middle'}),
    element('td', {}, fixed(100 * all.reduce((a, s) => a + p[s], 0), 1) + ' %'),
    element('td', {}), element('td', {}, signed(effects.reduce((a, b) => a + b, 0))));
  $('sources').tBodies[0].replaceChildren(...rows, total);
  for (const [canvas, x] of canvases) drawProducts(canvas, x, largest);
  $('more').hidden = all.length <= shownAtOnce;
  $('more').textContent = state.all ? `show ${shownAtOnce} only` : `show all ${all.length}`;
}
function chart(label, values, describe) {
  const largest = Math.max(1e-9, ...values.map(Math.abs)),
      picture = svg('svg', {viewBox: `0 -1 ${values.length} 2`,
    preserveAspectRatio: 'none', role: 'img', 'aria-label': label});
  picture.append(svg('line', {x1: 0, x2: values.length, y1: 0, y2: 0}));
  values.forEach((x, i) => {
    const size = Math.max(Math.abs(x) / largest, .004);
    const bar = svg('rect', {x: i + .12, width: .76, y: x < 0 ? 0 : -size, height: size,
        class: x < 0 ? 'minus' : 'plus'});
    bar.append(svg('title', {}, `dimension ${i}: ${describe(i)}`));
    picture.append(bar);
  });
  return element('div', {class: 'chart'}, element('span', {}, label, element('br'),
      element('span', {class: 'dim'},
    `up to ${largest.toFixed(2)}`)), picture);
}
/* How the sum of the products becomes the score, in words. */
function scoreInWords(sum, qq, kk) {
  const x = fixed(sum, 3), root = `\u221a${HS}`;
  const words = {dot: `Sum of the products ${x}`,
    cosine: `Sum of the products ${x}, divided by the lengths of query ${fixed(Math.sqrt(qq), 3)} and key ` +
      `${fixed(Math.sqrt(kk), 3)}, times ${root}`,
    l2: `Twice the sum of the products ${x}, less the squared lengths of query ${fixed(qq, 3)} and key ` +
      `${fixed(kk, 3)}, divided by ${root}`,
    dot2: `Sum of the products ${x}, divided by ${root}, squared`}[model.score] ??
      `Sum of the products ${x}, divided by ${root}`;
  return words + (model.softcap > 0 ? `, bent to stay within \u00b1${model.softcap}` : '') + ': score ';
}
function softmaxInWords(t) {
  const {first, end} = keysOf(t), n = end - first;
  return n === 1 ? ' by itself, as it sees no other token, e'
      : end === t + 1 && first === 0 ? ` by the sum over all ${n} tokens up to here, e`
      : ` by the sum over the ${n} tokens that it sees, e`;
}
function maskInWords(t) {
  const {first, end} = keysOf(t), hidden = T - (end - first);
  if (hidden === 0) return '.';
  const which = end === t + 1 && first === 0 ? 'behind' : 'that it does not see';
  return hidden === 1 ? `. The token ${which} is masked and gets nothing.`
      : `. The ${hidden} tokens ${which} are masked and get nothing.`;
}
function drawSteps() {
  const {t, l, h, s} = state, a = [], b = [], ab = [], v = [], w = [], vw = [];
  const sum = queryKey(l, h, t, s, (i, product, x, y) => { a.push(x); b.push(y); ab.push(product); });
  const taken = valueTimes(l, h, t, s, (i, product, x, y) => { v.push(x); w.push(y); vw.push(product); });
  const times = (x, y, xy) => i => `${fixed(x[i], 3)} \u00d7 ${fixed(y[i], 3)} = ${fixed(xy[i], 3)}`;
  const qq = squareOfQuery(l, h, t), kk = squareOfKey(l, h, s);
  const value = scoreOf(sum, qq, kk), z = lse(l, h, t), p = share(l, h, t, s), rstd = array('rstd')[t];
  $('score').replaceChildren(chart(`query of ${quoted(facts.tokens[t])}`, a, i => fixed(a[i], 3)),
    chart(`key of ${quoted(facts.tokens[s])}`, b, i => fixed(b[i], 3)),
    chart('product', ab, times(a, b, ab)));
  $('formula').replaceChildren(scoreInWords(sum, qq, kk), element('b', {}, fixed(value, 3)),
    `. The softmax divides e`, element('sup', {}, 'score'), softmaxInWords(t),
    element('sup', {}, fixed(z, 3)),
    `: attention e`, element('sup', {}, fixed(value - z, 3)), ' = ',
    element('b', {}, fixed(100 * p, 1) + ' %'), maskInWords(t));
  $('value').replaceChildren(chart(`value of ${quoted(facts.tokens[s])}`, v, i => fixed(v[i], 3)),
    chart(`direction to ${quoted(target[t])}`, w, i => fixed(w[i], 3)),
    chart('product', vw, times(v, w, vw)));
  $('effect').replaceChildren(`Sum of the products ${fixed(taken, 3)} \u00d7 attention ${p.toFixed(4)} ` +
    `\u00d7 scale of the last norm ${rstd.toFixed(4)} = effect on the logit `,
    element('b', {}, signed(rstd * p * taken)), '.');
}

/* --- the residual stream --- */
function drawStream() {
  const t = state.t, N = 10, tokens = array('lens_token'), p = array('lens_p'), norms = array('norms'),
      rows = [];
  for (let depth = 0; depth <= L; depth++) {
    const at = depth * T + t, chipsOf = [];
    for (let i = 0; i < 6; i++) {
      if (p[at * N + i] === 0) continue;
      const id = tokens[at * N + i], chip = element('span',
          {class: 'chip token' + (id === target[t] ? ' wanted' : '')},
        named(id) + ' ', element('small', {}, percent(p[at * N + i])));
      paint(chip, p[at * N + i]);
      chipsOf.push(chip);
    }
    const l = depth - 1, n = (l * T + t) * 5;
    const heads = l < 0 ? 0 :
      Array.from({length: NH}, (_, h) => headEffect(l, h, t)).reduce((a, b) => a + b, 0) +
      array('bias_effect')[l * T + t];
    const added = l < 0 ? [element('span', {class: 'number'}, `length ${norms[t * 5].toFixed(2)}`)] : [
      element('span', {class: 'number'}, `attention ${signed(heads)}, length ${norms[n + 1].toFixed(2)}`),
      element('br'),
      element('span', {class: 'number'},
          `MLP ${signed(array('mlp_effect')[l * T + t])}, length ${norms[n + 3].toFixed(2)}`)];
    rows.push(element('div', {class: 'layer'},
      element('div', {}, element('span', {class: 'name'}, l < 0 ? 'embedding' : `layer ${l}`)),
      element('div', {}, element('div', {class: 'chips'}, ...chipsOf), element('span', {class: 'dim'},
        `${quoted(target[t])}: ${percent(array('lens_target_p')[at])}, rank ${array('lens_rank')[at]}; ` +
        `entropy ${array('lens_entropy')[at].toFixed(2)} nats`)),
      element('div', {class: 'dim'}, ...added)));
  }
  $('stream').replaceChildren(...rows);
  const next = t + 1 < T ? `In this text, ${quoted(target[t])} follows.` :
    `Nothing follows in this text; the most probable token is ${quoted(target[t])}.`;
  $('what').textContent = ` ${next} On the right is what each half of the layer adds: its effect on the ` +
    `logit of ${quoted(target[t])}, and its length.`;
}
function signedBar(x, largest) {
  const size = 50 * Math.abs(x) / largest;
  return element('span', {class: 'track signed'},
    element('i', {class: x < 0 ? 'minus' : '', style: `width:${size}%;left:${x < 0 ? 50 - size : 50}%`}));
}
function drawParts() {
  const t = state.t, parts = [{name: `embedding of ${quoted(facts.tokens[t])}`, x: array('token_effect')[t]}];
  if (model.positions === 'learned' || model.positions === 'sinusoidal')
    parts.push({name: `embedding of position ${t}`, x: array('position_effect')[t]});
  for (let l = 0; l < L; l++) {
    for (let h = 0; h < NH; h++)
      parts.push({name: `layer ${l}, head ${h}`, x: headEffect(l, h, t), head: {l, h}});
    parts.push({name: `layer ${l}, MLP`, x: array('mlp_effect')[l * T + t]});
    if (model.bias === 'on')
      parts.push({name: `layer ${l}, attention's bias`, x: array('bias_effect')[l * T + t]});
  }
  if (array('constant_effect')[t] !== 0)
    parts.push({name: model['embedding-norm'] === 'on' ? "norms' biases" : "last norm's bias", x: array('constant_effect')[t]});
  const sum = parts.reduce((a, part) => a + part.x, 0), count = parts.length;
  parts.sort((a, b) => Math.abs(b.x) - Math.abs(a.x));
  const list = parts.slice(0, 12), largest = Math.max(1e-9, Math.abs(list[0].x));
  $('parts').replaceChildren(...list.flatMap(part => [
    part.head ? element('button', {class: 'name', onclick: () => choose(part.head)}, part.name)
              : element('span', {class: 'name'}, part.name),
    signedBar(part.x, largest), element('span', {class: 'number'}, signed(part.x))]));
  $('sum').textContent = `All ${count} parts add up to ${fixed(sum, 4)}; ` +
    `the model's logit${model['logit-softcap'] ? ' before its soft cap' : ''} is ${fixed(array('target_logit')[t], 4)}.`;
}

/* --- everything --- */
function setAll(selector, text) { for (const e of document.querySelectorAll(selector)) e.textContent = text; }
function draw() {
  const {t, l, h, s} = state;
  setAll('h2 .l, p .l', String(l));
  setAll('h2 .h, p .h', String(h));
  setAll('h2 .token, h3 .token, p .token', quoted(facts.tokens[t]));
  setAll('.source', quoted(facts.tokens[s]));
  setAll('.target', quoted(target[t]));
  setAll('.seen', {
    'anti-causal': 'A token sees itself and what follows, also the word that it has to predict.',
    full: 'A token sees all others, also the word that it has to predict.',
    window: `A token sees itself and the ${model.window - 1} tokens before it, never what follows.`,
  }[model.mask] ?? 'A token sees itself and what stands before it, never what follows, because that is ' +
    'what it has to predict.');
  $('chosen').textContent = `${t}: ${named(facts.tokens[t])}`;
  $('before').disabled = t === 0;
  $('after').disabled = t === T - 1;
  $('layer').value = l;
  $('head').value = h;
  showAttention(t);
  drawHeads();
  drawMatrix();
  read(t, s);
  drawSources();
  drawSteps();
  drawStream();
  drawParts();
  drawNext();
  if (whatIf) drawWhatIf();
}
function redraw() {
  makeShades();
  if (study.steps.length) drawStudy();
  fillImage($('legend'), 120, 1, Float32Array.from({length: 120}, (_, i) => i / 119));
  stripsOf = -1;
  for (const square of squares) if (square.canvas.width > 1) waiting.push(square);
  if (waiting.length && !working) { working = true; requestAnimationFrame(work); }
  draw();
}
const options = n => Array.from({length: n}, (_, i) => element('option', {value: i}, String(i)));
/* Shows another pass; the place that is looked at stays where there is one. */
function show(p) {
  const before = pass, sameText = before && sameTokens(before, p);
  const fromEnd = before ? T - 1 - state.t : 0;
  take(p);
  if (!sameText) {
    state.t = Math.max(0, T - 1 - fromEnd);
    buildTokens();
  }
  if (before && !sees(state.t, state.s)) state.s = strongest();
  buildHeads();
  redraw();
}
/* What a pass was without. */
const offInWords = ([layer, head]) => `layer ${layer}, head ${head} is off`;
const cutInWords = ([to, from, layer, head]) => `token ${to} does not see token ${from} ` +
    (layer < 0 ? 'anywhere' : head < 0 ? `in layer ${layer}` : `in layer ${layer}, head ${head}`);
/* Once: what stays the same for all passes. */
function start(p) {
  take(p);
  state.t = T - 1;
  $('name').textContent = model.name || 'a model';
  $('shape').textContent = `${model.parameters.toLocaleString('en')} parameters: ${L} layers of ${NH} heads` +
    (NKV < NH ? ` (${NKV} of keys and values)` : '') +
        ` with ${HS} dimensions each, a residual stream of ${model.channels}, ` +
    `${vocabulary.length.toLocaleString('en')} tokens. Positions: ${model.positions}; ` +
    `norm: ${model.norm}; MLP: ${model.mlp} of ${model.ff}; score: ${model.score}; mask: ${model.mask}.` +
    (facts.step >= 0 ? ` As it was after step ${facts.step}.` : '') +
    [...facts.without.off.map(offInWords), ...facts.without.cut.map(cutInWords)]
        .map(what => ` Here ${what}.`).join('');
  document.title = `How ${model.name || 'a model'} reads a text`;
  $('layer').append(...options(L));
  $('head').append(...options(NH));
  $('layer').onchange = () => choose({l: Number($('layer').value)});
  $('head').onchange = () => choose({h: Number($('head').value)});
  $('before').onclick = () => choose({t: Math.max(0, state.t - 1)});
  $('after').onclick = () => choose({t: Math.min(T - 1, state.t + 1)});
  $('sort').onchange = () => choose({sort: $('sort').value});
  $('more').onclick = () => choose({all: !state.all});
  buildTokens();
  buildHeads();
  buildSliders();
  chooseHead(state.t);
  readAddress();
  redraw();
  onResize(draw);
  window.onhashchange = () => {
    const now = new URLSearchParams(location.hash.slice(1));
    for (const key of ['t', 'l', 'h', 's']) if (now.has(key)) address.set(key, now.get(key));
    readAddress();
    draw();
  };
  matchMedia('(prefers-color-scheme: dark)').onchange = redraw;
}
