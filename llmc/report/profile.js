'use strict';
/* One training step: a bar, a table, and the roofline (Williams et al. 2009), where each operation stands at
 * its FLOPs per byte and its FLOP/s. */
const facts = embedded('facts');
const FAMILIES = [ /* the first whose pattern is found in an operation's name; the colour is its place */
  ['matmul', /^matmul/], ['attention', /^(attn|rope)/], ['norm', /norm_/],
  ['activation', /^(act|glu|dropout)/], ['loss', /^loss/], ['embedding', /^embed/],
  ['other', /^(cast|fill|randn|sum$)/], ['optimizer', /^/],
];
const familyOf = row => FAMILIES.findIndex(([, pattern]) => pattern.test(row.name));
const colourOf = row => colour(familyOf(row));
const ms = x => fixed(1e3 * x, 3);
const percent = x => fixed(100 * x, 1);
const named = row => row.name.replace('->', '\u2192');
const brief = row => named(row).replace('matmul_forward', 'fwd').replace('matmul_backward', 'bwd');
const gain = row => row.seconds - row.ideal;
const hasPoint = row => row.flops > 0 && row.bytes > 0 && row.seconds > 0;
const shown = facts.rows.filter(hasPoint); /* the points of the picture, in this order */
let chart = null;

function parts(row) {
  const title = `${named(row)}: ${ms(row.seconds)} ms, ${ms(row.ideal)} ms at the roofline`;
  return [{value: row.ideal, colour: colourOf(row), title},
    {value: gain(row), colour: colourOf(row), faint: true, title}];
}

function drawHead() {
  $('where').textContent = facts.where;
  $('note').textContent = facts.note || '';
  document.title = facts.title;
  $('about').textContent = `${facts.title}; ${facts.date}. ${ms(facts.step)} ms a step (median of ` +
    `${facts.repeats}, \u00b1 ${percent(facts.spread / facts.step)} %), ` +
    `${fixed(facts.tokens / facts.step, 0)} tokens/s, ${humanCount(facts.model_flops / facts.step)}FLOP/s ` +
    `by the convention of papers: ${percent(facts.model_flops / facts.step / facts.matmul_rate)} % of the ` +
    `matmul rate measured in the same run (${humanCount(facts.matmul_rate)}FLOP/s; copying moves ` +
    `${humanCount(facts.copy_rate)}B/s). Every operation at its roofline, the step would take ` +
    `${ms(facts.ideal)} ms.`;
}

function drawStep() {
  const sums = FAMILIES.map(([name], k) => {
    const rows = facts.rows.filter(row => familyOf(row) === k);
    return {name, k, rows, seconds: rows.reduce((sum, row) => sum + row.seconds, 0)};
  }).filter(family => family.rows.length).sort((a, b) => b.seconds - a.seconds);
  const whole = bar(sums.flatMap(family => family.rows.flatMap(parts)), facts.in_ops);
  whole.style.height = '2.2rem';
  $('step').replaceChildren(whole);
  $('families').replaceChildren(...sums.map(family => element('li', {},
    swatch(colour(family.k)),
    `${family.name} ${ms(family.seconds)} ms, ${percent(family.seconds / facts.in_ops)} %`)));
}

function drawTable() {
  const largest = Math.max(...facts.rows.map(row => row.seconds)), key = $('sort').value;
  const order = {gain: (a, b) => gain(b) - gain(a), seconds: (a, b) => b.seconds - a.seconds,
      share: (a, b) => a.ideal / a.seconds - b.ideal / b.seconds,
      name: (a, b) => a.name < b.name ? -1 : 1}[key];
  const wide = text => element('td', {class: 'wide'}, text);
  const line = (name, variant, calls, seconds, ideal, rates) => [
    element('td', {}, ...name), wide(variant), element('td', {}, calls),
    element('td', {}, ms(seconds)), element('td', {}, percent(seconds / facts.in_ops)), ...rates.map(wide),
    element('td', {}, percent(ideal / seconds)), wide(ms(seconds - ideal))];
  $('rows').tBodies[0].replaceChildren(...[...facts.rows].sort(order).map(row => {
    const point = shown.indexOf(row), choose = () => pick(point < 0 ? null : point);
    return element('tr', {'data-point': point, onmouseenter: choose, onclick: choose},
      ...line([named(row), bar(parts(row), largest)], row.variant, String(row.calls), row.seconds, row.ideal,
        [fixed(row.bytes / row.seconds * 1e-9, 1), fixed(row.flops / row.seconds * 1e-9, 1)]));
  }));
  $('rows').tFoot.replaceChildren(element('tr', {},
    ...line(['all operations'], '', '', facts.in_ops, facts.ideal, ['', ''])));
  const cached = facts.rows.filter(row => row.ideal === row.seconds).length;
  $('cached').textContent = cached ? `${cached} of them had their data in a cache and were faster than ` +
    'memory: they count as 100 %.' : '';
}

function pick(i) {
  chart.choose(i);
  for (const row of $('rows').tBodies[0].rows)
    row.classList.toggle('chosen', i !== null && Number(row.dataset.point) === i);
}

function drawRoofline() {
  if (!chart)
    chart = new Chart($('roofline'), {title: 'FLOP/s', unit: 'over FLOPs per byte, both logarithmic',
        format: count, height: 520, onPoint: pick});
  const ridge = facts.matmul_rate / facts.copy_rate, small = innerWidth < 640 ? 0.6 : 1;
  const points = shown.map(row => ({name: brief(row), brief: String(facts.rows.indexOf(row) + 1),
      colour: colourOf(row), x: row.flops / row.bytes, y: row.flops / row.seconds,
      radius: small * (3.5 + 15 * Math.sqrt(row.seconds / facts.in_ops)),
      about: `${ms(row.seconds)} ms in ${row.calls} calls of ${row.variant}, ` +
        `${humanCount(row.flops / row.seconds)}FLOP/s, ${humanCount(row.bytes / row.seconds)}B/s, ` +
        `${short(row.flops / row.bytes)} FLOPs per byte: ${percent(row.ideal / row.seconds)} % of the ` +
        `roofline, ${ms(gain(row))} ms to gain`}));
  const from = Math.min(ridge, ...points.map(point => point.x)) / 3,
      to = Math.max(ridge, ...points.map(point => point.x)) * 3;
  chart.draw({x: {from, to, log: true, format: short}, y: {log: true}, points, lines: [
    {name: 'memory', label: `copy ${humanCount(facts.copy_rate)}B/s`, colour: 'var(--fg)', x: [from, ridge],
      y: [from * facts.copy_rate, facts.matmul_rate]},
    {name: 'matmul', label: `matmul ${humanCount(facts.matmul_rate)}FLOP/s`, colour: 'var(--fg)',
      x: [ridge, to], y: [facts.matmul_rate, facts.matmul_rate]}]});
}

drawHead();
drawStep();
drawTable();
drawRoofline();
$('sort').onchange = drawTable;
onResize(drawRoofline);
