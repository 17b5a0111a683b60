'use strict';
/* The memory of a training step: bars for each level of ZeRO, the same as a table, and over the batch
 * size. */
const facts = embedded('facts');
const GIB = 2 ** 30;
let chart = null;

function drawText() {
  for (const id of ['model', 'memory', 'verdict']) $(id).textContent = facts[id];
  $('work-title').textContent = facts.work_title;
  document.title = facts.model;
}

function drawBars() {
  const whole = Math.max(facts.available, ...facts.levels.map(level => level.total));
  $('kinds').replaceChildren(...facts.kinds.map((kind, k) => element('li', {},
      swatch(colour(k)), kind)),
    element('li', {}, element('span', {class: 'swatch', style: 'background:var(--fg);width:2px'}),
      `available: ${humanBytes(facts.available)}`));
  $('bars').tBodies[0].replaceChildren(...facts.levels.map((level, i) => element('tr', {},
    element('td', {}, level.name, i === facts.chosen && facts.levels.length > 1
        ? element('span', {class: 'dim'}, ' (chosen)') : ''),
    element('td', {style: 'width:70%'}, bar(level.parts.map((value, k) => ({value, colour: colour(k),
        title: `${facts.kinds[k]}: ${humanBytes(value)}`})), whole, facts.available)),
    element('td', {}, humanBytes(level.total)), element('td', {}, level.fits ? 'fits' : 'does not fit'))));
}

function drawTable() {
  const row = (name, cell) => element('tr', {}, element('td', {}, name),
      ...facts.levels.map(level => element('td', {}, cell(level))));
  $('table').tHead.replaceChildren(element('tr', {}, element('th', {}, ''),
      ...facts.levels.map(level => element('th', {}, level.name))));
  $('table').tBodies[0].replaceChildren(
    ...facts.kinds.map((kind, k) => row(kind, level => humanBytes(level.parts[k]))),
    row('total', level => humanBytes(level.total)), row('fits', level => level.fits ? 'yes' : 'no'),
    row('--batch-size', level => level.batch));
}

function drawBatches() {
  const {sizes, bytes} = facts.batches;
  if (!chart)
    chart = new Chart($('batches'), {title: 'Memory of a process',
        unit: 'GiB over --batch-size, both logarithmic', format: x => humanBytes(x * GIB),
      onCursor: x => chart.cursor(x)});
  chart.draw({x: {from: 1, to: sizes[sizes.length - 1], log: true,
      format: (x, exact) => exact ? `--batch-size ${Math.round(x)}` : short(x)}, y: {log: true},
    lines: facts.levels.map((level, i) => ({name: level.name, colour: colour(i), dash: DASHES[i % 3],
        marks: true, x: sizes, y: bytes[i].map(b => b / GIB)})),
    levels: [{y: facts.available / GIB, name: `available ${humanBytes(facts.available)}`,
        colour: 'var(--fg)'}]});
}

function drawWork() {
  const row = (name, value) => element('tr', {}, element('td', {}, name), element('td', {style: 'width:70%'},
      bar([{value, colour: 'var(--bar)'}], facts.total)), element('td', {}, `${humanCount(value)}FLOP`));
  $('work').tBodies[0].replaceChildren(
    ...Object.entries(facts.work).map(([name, value]) => row(name, value)));
  $('work').tFoot.replaceChildren(row('total', facts.total));
  $('work').after(element('p', {class: 'note'}, 'By the formula of the literature, 6N + 6LCT per token: ' +
    `${humanCount(facts.formula)}FLOP.`));
}

drawText();
drawBars();
drawTable();
drawBatches();
drawWork();
onResize(drawBatches);
