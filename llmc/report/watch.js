'use strict';
/* Runs, live. The server is asked for the state once a second; when a run has new rows, or another stretch is
 * looked at, for the curves, which it thins out to what a screen can show. */
const file = embedded('facts'); /* {state, series} of a page in a file */
const SERIES = [ /* charts, in this order; `with` is drawn into the chart of another */
  {key: 'loss', title: 'Loss', unit: 'nats per token', format: x => fixed(x, 4), with: 'val_loss'},
  {key: 'lr', title: 'Learning rate', unit: '', format: short},
  {key: 'grad_norm', title: 'Gradient norm', unit: '', format: short},
  {key: 'tokens_per_second', title: 'Tokens per second', unit: '', format: count},
  {key: 'flops_share', title: 'MFU', unit: '% of the measured matmul rate', format: x => fixed(x, 1),
      scale: 100},
  {key: 'gpu_watts', title: 'GPU power', unit: 'W', format: short},
  {key: 'gpu_celsius', title: 'GPU temperature', unit: '\u00b0C', format: short},
  {key: 'gpu_sm_mhz', title: 'GPU clock', unit: 'MHz', format: short},
  {key: 'gpu_utilisation', title: 'GPU utilisation', unit: '%', format: short, scale: 100},
];
const SMOOTH = [0, .5, .8, .9, .95, .98, .99, .995, .998, .999, .9995];
const view = {axis: 'step', smooth: 0, logx: false, logy: false, from: null, to: null, hidden: new Set()};
let state = null, series = null, asked = '', cursorAt = null;
const charts = new Map();

/* --- the view, and the part of the address behind # --- */
function readView() {
  const number = key => address.has(key) && known(Number(address.get(key))) ? Number(address.get(key)) : null;
  view.axis = ['step', 'tokens', 'time'].includes(address.get('x')) ? address.get('x') : 'step';
  view.smooth = Math.max(0, Math.min(SMOOTH.length - 1, Math.round(number('smooth') || 0)));
  view.logx = address.get('logx') === '1';
  view.logy = address.get('logy') === '1';
  view.from = number('from');
  view.to = number('to');
  view.hidden = new Set((address.get('hide') || '').split(',').filter(Boolean).map(Number));
}
function changeView(changes) {
  if (changes.axis && changes.axis !== view.axis) Object.assign(changes, {from: null, to: null});
  Object.assign(view, changes);
  cursorAt = changes.axis ? null : cursorAt;
  setAddress({x: view.axis === 'step' ? null : view.axis, smooth: view.smooth || null,
      logx: view.logx ? 1 : null, logy: view.logy ? 1 : null,
    from: view.from, to: view.to, hide: [...view.hidden].join(',')});
  showControls();
  refresh();
}
function showControls() {
  $('axis').value = view.axis;
  $('smooth').value = view.smooth;
  $('smooth-value').textContent = view.smooth ? SMOOTH[view.smooth] : 'off';
  $('logx').checked = view.logx;
  $('logy').checked = view.logy;
}

/* --- the x-axis --- */
function formatX(x, exact) {
  if (view.axis === 'time') return duration(x);
  if (view.axis === 'tokens') return count(x) + (exact ? ' tokens' : '');
  return exact ? `step ${Math.round(x)}` : count(x);
}
/* Round numbers of seconds, minutes or hours. */
function timeTicks(low, high, n) {
  const unit = [1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400]
      .find(u => (high - low) / u <= n);
  if (!unit || unit === 1) return ticks(low, high, n);
  return ticks(low / unit, high / unit, (high - low) / unit).map(t => t * unit);
}
function xOf(i, points) {
  if (view.axis === 'time') return points.time;
  if (view.axis === 'tokens') return points.step.map(s => s * (state.runs[i].tokens_per_step || 1));
  return points.step;
}
function wholeX() {
  let to = 0, from = Infinity;
  eachShown(i => {
    for (const points of Object.values(series.runs[i].series)) {
      const x = xOf(i, points).filter(v => known(v) && (!view.logx || v > 0));
      if (x.length) { to = Math.max(to, x[x.length - 1]); from = Math.min(from, x[0]); }
    }
  });
  return [view.logx ? Math.max(from === Infinity ? 1 : from, 1e-9) : 0, to];
}
function eachShown(f) {
  series.runs.forEach((run, i) => { if (state.runs[i] && !view.hidden.has(i)) f(i, run); });
}

/* --- curves --- */
/* An exponential average over rows: a point that stands for n rows counts like n. */
function smoothed(points) {
  const beta = SMOOTH[view.smooth], out = [];
  let sum = 0, weight = 0;
  points.mean.forEach((y, i) => {
    const keep = beta ** (points.rows ? points.rows[i] : 1);
    if (known(y)) { sum = keep * sum + (1 - keep) * y; weight = keep * weight + (1 - keep); }
    out.push(weight > 0 ? sum / weight : null);
  });
  return out;
}
function linesOf(spec) {
  const lines = [], scale = spec.scale || 1;
  const times = a => scale === 1 ? a : a.map(v => known(v) ? v * scale : v);
  eachShown((i, run) => {
    const points = run.series[spec.key], name = state.runs[i].name,
        look = {colour: colour(i), dash: DASHES[Math.floor(i / COLOURS) % 3]};
    if (points) {
      const x = xOf(i, points), line = {name, x, y: times(points.mean), ...look};
      if (points.min) Object.assign(line, {low: times(points.min), high: times(points.max)});
      if (view.smooth) lines.push({...line, faint: true}, {name, x, y: times(smoothed(points)), ...look});
      else lines.push(line);
    }
    const other = spec.with && run.series[spec.with];
    if (other)
      lines.push({name: `${name}, validation`, x: xOf(i, other), y: times(other.mean), ...look, marks: true,
        dash: '4 3'});
  });
  return lines;
}
function drawCharts() {
  const whole = wholeX(), from = view.from ?? whole[0], to = view.to ?? whole[1];
  const x = {from: view.logx ? Math.max(from, whole[0]) : from, to, log: view.logx, format: formatX,
      ticks: view.axis === 'time' ? timeTicks : ticks};
  for (const spec of SERIES) {
    const has = state.runs.some(run => run.has[spec.key] || run.has[spec.with]), chart = charts.get(spec.key);
    if (!has && chart) { chart.box.remove(); charts.delete(spec.key); }
    if (!has) continue;
    if (!chart) {
      const fresh = new Chart($('charts'), {title: spec.title, unit: spec.unit, format: spec.format,
          height: spec.key === 'loss' ? 320 : 220,
        onCursor: moveCursor, onZoom: zoom});
      charts.set(spec.key, fresh);
      for (const s of SERIES) if (charts.has(s.key)) $('charts').append(charts.get(s.key).box); /* in order */
    }
    const levels = [];
    if (spec.key === 'loss') eachShown(i => {
      const y = state.runs[i].floor;
      if (known(y) && !levels.some(level => level.y === y))
        levels.push({y, name: `floor ${fixed(y, 4)}`, colour: colour(i)});
    });
    charts.get(spec.key).draw({x, y: {log: view.logy}, lines: linesOf(spec), levels});
  }
}
function moveCursor(x) {
  cursorAt = x;
  for (const chart of charts.values()) chart.cursor(x);
}
function zoom(from, to) {
  if (from === null) return changeView({from: null, to: null});
  const whole = wholeX(), least = view.axis === 'time' ? 1e-3 : 1;
  const a = Math.max(whole[0], from), b = Math.min(to, Math.max(whole[1], view.to ?? 0));
  if (b - a < least) return undefined;
  return changeView(a <= whole[0] && b >= whole[1] && view.from === null ? {from: null, to: null}
      : {from: a, to: b});
}
function zoomBy(factor) {
  const whole = wholeX(), a = view.from ?? whole[0], b = view.to ?? whole[1], middle = (a + b) / 2,
      half = (b - a) / 2 * factor;
  if (middle - half <= whole[0] && middle + half >= whole[1]) zoom(null, null);
  else zoom(middle - half, middle + half);
}

/* --- tables --- */
function stateOf(run) {
  if (!run.there) return ['gone', run.step ? 'deleted' : 'no log yet'];
  if (known(run.steps) && run.step >= run.steps) return ['done', 'complete'];
  const ahead = known(run.eta) && run.steps > run.step;
  const stale = Math.max(20, ahead ? 20 * run.eta / (run.steps - run.step) : 0);
  return run.age < stale ? ['live', file ? 'running when this was saved' : 'running']
      : ['late', `last row ${duration(run.age)} ago`];
}
function drawRuns() {
  const cell = (label, text, note) => element('td',
      {'data-label': label, class: text === '\u2013' ? 'unknown' : ''}, text,
    note ? element('small', {}, note) : '');
  const rows = state.runs.map((run, i) => {
    const last = run.last, [kind, says] = stateOf(run),
        box = element('input', {type: 'checkbox', 'aria-label': `show ${run.name}`});
    box.checked = !view.hidden.has(i);
    box.onchange = () => {
      const hidden = new Set(view.hidden);
      if (box.checked) hidden.delete(i); else hidden.add(i);
      changeView({hidden});
    };
    const above = known(run.floor) && run.floor > 0 && known(last.val_loss)
        ? `+${fixed(100 * (last.val_loss / run.floor - 1), 1)} %` : '';
    const share = known(run.steps) && run.steps > 0 ? Math.min(1, run.step / run.steps) : 0;
    const facts = run.facts || {};
    const about = [run.unreadable ? `${run.unreadable} lines are no rows` : '',
      run.left_out ? `${run.left_out} rows left out` : '', facts.device || '',
      facts.parameters ? `${count(facts.parameters)} parameters` : ''].filter(Boolean).join(', ');
    return element('tr', {}, element('td', {}, element('label', {}, box, ' ',
        swatch(colour(i)), run.name), ' ', element('span', {class: `state ${kind}`}, says),
        element('small', {}, about)),
      element('td', {'data-label': 'progress'}, `${run.step} / ${known(run.steps) ? run.steps : '?'}`,
        bar([{value: share, colour: 'var(--bar)'}], 1)),
      cell('ETA', kind === 'done' ? '\u2013' : duration(run.eta),
          known(run.seconds) ? `after ${duration(run.seconds)}` : ''),
      cell('loss', known(last.loss) ? fixed(last.loss, 4) : '\u2013'),
      cell('validation', known(last.val_loss) ? fixed(last.val_loss, 4) : '\u2013', above),
      cell('floor', known(run.floor) ? fixed(run.floor, 4) : '\u2013'), cell('learning rate', short(last.lr)),
      cell('gradient', short(last.grad_norm)),
      cell('tokens/s', count(run.rate)), cell('MFU',
          known(run.share) ? `${fixed(100 * run.share, 1)} %` : '\u2013'),
      cell('GPU', known(last.gpu_watts) ? `${fixed(last.gpu_watts, 0)} W` : '\u2013',
          known(last.gpu_celsius) ? `${fixed(last.gpu_celsius, 0)} \u00b0C` : ''));
  });
  const focus = document.activeElement && document.activeElement.getAttribute('aria-label');
  $('runs').tBodies[0].replaceChildren(...rows);
  for (const box of $('runs').querySelectorAll('input'))
    if (box.getAttribute('aria-label') === focus) box.focus();
}
function drawSamples() {
  const wasOpen = new Map([...$('samples').querySelectorAll('details')].map(d => [d.dataset.key, d.open]));
  const columns = state.runs.map((run, i) => ({run, i}))
      .filter(({run, i}) => run.samples.length && !view.hidden.has(i)).map(({run, i}) => {
    const list = [...run.samples].reverse().map((sample, n) => {
      const key = `${i}:${sample.step}`, d = element('details', {'data-key': key},
          element('summary', {}, `step ${sample.step}`),
        element('p', {class: 'text'}, sample.text));
      d.open = wasOpen.get(key) ?? n === 0;
      return d;
    });
    return element('div', {}, element('h3', {}, swatch(colour(i)), run.name), ...list);
  });
  $('samples').replaceChildren(...(columns.length ? columns : [element('p', {class: 'note'},
    'No sample yet. --sample-every N writes one every N steps; the last step has one.')]));
}
function drawOptions() {
  const runs = state.runs.filter(run => run.options);
  const names = [...new Set(runs.flatMap(run => Object.keys(run.options)))];
  const text = (run, name) => {
    const value = run.options[name];
    if (value === undefined) return '\u2013';
    if (value === null) return 'none';
    if (typeof value === 'number') return String(Number(value.toPrecision(9)));
    return typeof value === 'string' ? value : JSON.stringify(value);
  };
  const rows = [];
  for (const name of names) {
    const values = runs.map(run => text(run, name)), differs = new Set(values).size > 1;
    if ($('differing').checked && !differs) continue;
    rows.push(element('tr', {class: differs ? 'differs' : ''}, element('td', {}, name),
        ...values.map(v => element('td', {}, v))));
  }
  $('differing').parentElement.hidden = runs.length < 2;
  $('options').tHead.replaceChildren(element('tr', {}, element('th', {}, 'option'),
      ...runs.map(run => element('th', {}, run.name))));
  $('options').tBodies[0].replaceChildren(...rows);
}
const quoted = path => /^[\w./+-]+$/.test(path) ? path : `'${path.replace(/'/g, "'\\''")}'`;
function drawCheckpoints() {
  const rows = state.runs.flatMap((run, i) => [...run.checkpoints].reverse().map(c => element('tr', {},
    element('td', {}, swatch(colour(i)), run.name),
    element('td', {}, String(c.step)),
    element('td', {}, `${count(c.bytes)}B`), element('td', {}, new Date(1000 * c.written).toLocaleString()),
    element('td', {}, element('code', {}, 'train_gpt view --serve --from ' +
      quoted(`${run.path}/step-${String(c.step).padStart(8, '0')}`))))));
  $('checkpoints').tBodies[0].replaceChildren(...rows);
}

/* --- keeping up --- */
let drawn = '';
function drawTables() {
  drawRuns();
  const now = JSON.stringify(state.runs.map(run => [run.samples, run.options, run.checkpoints])) +
      [...view.hidden] + $('differing').checked;
  if (now === drawn) return; /* so that a selection or an open text stays */
  drawn = now;
  drawSamples();
  drawOptions();
  drawCheckpoints();
  const names = state.runs.map(run => run.name);
  $('title').textContent = names.length === 1 ? `Training run ${names[0]}` : `${names.length} training runs`;
  document.title = names.join(', ');
}
function say(text, wrong) {
  $('news').textContent = text;
  $('news').classList.toggle('wrong', !!wrong);
}
async function refresh() {
  if (file) {
    state = file.state;
    series = file.series;
  } else {
    const wanted = new URLSearchParams({axis: view.axis,
        points: Math.max(100, Math.min(1500, Math.round(innerWidth / 2)))});
    if (view.from !== null) { wanted.set('from', view.from); wanted.set('to', view.to); }
    const key = wanted + JSON.stringify(state.runs.map(run => run.version));
    if (key !== asked) {
      const fresh = await ask('series?' + wanted);
      if (fresh.runs.length !== state.runs.length)
        throw new Error('the server shows other runs now: load the page again');
      series = fresh;
      asked = key;
    }
  }
  drawTables();
  drawCharts();
}
async function follow() {
  for (;;) {
    if (!state || ($('live').checked && !document.hidden)) {
      try {
        state = await ask('state');
        await refresh();
        say($('live').checked ? '' : 'paused');
      } catch (e) {
        say(`No answer: ${e.message}. The page tries again; it shows what it had.`, true);
      }
    } else say('paused');
    await new Promise(done => setTimeout(done, 1000));
  }
}
function start() {
  readView();
  showControls();
  $('axis').onchange = () => changeView({axis: $('axis').value});
  $('smooth').oninput = () => changeView({smooth: Number($('smooth').value)});
  $('logx').onchange = () => changeView({logx: $('logx').checked});
  $('logy').onchange = () => changeView({logy: $('logy').checked});
  $('zoom-in').onclick = () => zoomBy(.5);
  $('zoom-out').onclick = () => zoomBy(2);
  $('zoom-all').onclick = () => zoom(null, null);
  $('differing').onchange = () => drawTables();
  const again = () => { if (series) drawCharts(); };
  onResize(again);
  matchMedia('(prefers-color-scheme: dark)').onchange = again;
  if (file) {
    $('live').parentElement.hidden = true;
    say(`As it was on ${new Date(1000 * file.state.now).toLocaleString()}.`);
    refresh();
  } else follow();
}
start();
