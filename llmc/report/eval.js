'use strict';
/* A text with each token shaded by its loss, on the scale of the terminal (loss_text.h), and the loss along
 * the text. */
const facts = embedded('facts');
const pieces = facts.pieces.map(([text, loss, tokens, ends]) => ({text, loss, tokens, ends}));
const levelOf = loss => facts.levels.filter(from => loss >= from).length;
const STRETCHES = 200;
let chosen = null, chart = null;

function paintLevel(e, level) { /* paint() takes the root */
  if (level) paint(e, (level / facts.levels.length) ** 2);
}

function drawHead() {
  $('model').textContent = facts.model;
  document.title = `Loss of ${facts.data}`;
  $('about').textContent = `${facts.data}: loss ${known(facts.loss) ? fixed(facts.loss, 4) : 'not finite,'} nats a token over ${facts.tokens} ` +
    `tokens, perplexity ${short(facts.perplexity)}` +
    (known(facts.bits_per_byte) ? `, ${fixed(facts.bits_per_byte, 4)} bits per byte` : '') + '.';
}

function drawScale() {
  const levels = facts.levels, n = levels.length;
  $('scale').replaceChildren(element('li', {class: 'dim'}, 'nats a token'),
    ...[0, ...levels].map((from, level) => {
      const label = level === 0 ? `below ${levels[0]}` : level < n ? `${from} to ${levels[level]}`
          : `${from} and more`;
      const sample = element('span', {class: 'token'}, ` ${label} `);
      paintLevel(sample, level);
      return element('li', {}, sample);
    }));
}

function drawText() {
  $('tokens').replaceChildren(...pieces.flatMap(({text, loss, ends}, i) => {
    const e = element('span', {class: 'token', 'data-token': i}, visible(text).replace(/\u23ce/g, '\u23ce\n'));
    if (known(loss)) paintLevel(e, levelOf(loss));
    pieces[i].element = e;
    return ends ? [e, '\n'] : [e];
  }));
  if (chosen !== null) choose(chosen);
}

function choose(i) {
  if (chosen !== null) pieces[chosen].element.classList.remove('chosen');
  chosen = i;
  const {text, loss, tokens, element: e} = pieces[i];
  e.classList.add('chosen');
  const about = !known(loss) ? 'not predicted'
      : `loss ${fixed(loss, 3)} nats, probability ${short(Number((100 * Math.exp(-loss)).toPrecision(3)))} %` +
        (tokens > 1 ? ` for the least expected of ${tokens} tokens` : '');
  $('reading').replaceChildren(element('b', {}, `\u201c${visible(text)}\u201d`), element('span', {}, about));
}

function key(event) {
  const to = {ArrowLeft: (chosen ?? 1) - 1, ArrowRight: (chosen ?? -1) + 1, Home: 0, End: pieces.length - 1}[event.key];
  if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(pieces.length - 1, to)));
}

/* The mean, smallest and largest loss of each stretch, over its first token. */
function drawAlong() {
  if (!chart)
    chart = new Chart($('along'), {title: 'loss', unit: 'nats a token', format: x => fixed(x, 3), onCursor: x => {
      chart.cursor(x);
      if (x !== null) choose(Math.max(0, Math.min(pieces.length - 1, Math.round(x))));
    }});
  const each = Math.max(1, Math.ceil(pieces.length / STRETCHES));
  const line = {name: 'loss', colour: colour(0), x: [], y: [], low: [], high: []};
  for (let i = 0; i < pieces.length; i += each) {
    const losses = pieces.slice(i, i + each).map(p => p.loss).filter(known);
    if (!losses.length) continue;
    line.x.push(i);
    line.y.push(losses.reduce((a, b) => a + b, 0) / losses.length);
    line.low.push(Math.min(...losses));
    line.high.push(Math.max(...losses));
  }
  chart.draw({x: {from: 0, to: Math.max(1, pieces.length - 1), format: (x, long) => (long ? 'token ' : '') + Math.round(x)}, y: {},
    lines: [line]});
}

makeShades();
drawHead();
drawScale();
drawText();
drawAlong();
$('tokens').onpointerover = event => {
  const token = event.target.closest('[data-token]');
  if (token) choose(Number(token.dataset.token));
};
$('tokens').onkeydown = key;
onResize(drawAlong);
matchMedia('(prefers-color-scheme: dark)').onchange = () => { makeShades(); drawScale(); drawText(); };
