'use strict';
/* What each head does with pronouns, checkpoint by checkpoint: measured by the server when it is asked. */
const study = {results: [], steps: [], running: false};
const headName = i => `layer ${Math.floor(i / NH)}, head ${i % NH}`;
/* The value of a head in one column, as a number; null: not measured. */
function studied(result, of, i) {
  if (!result) return null;
  if (of === 'loss') return result.loss.without[i] - result.loss.whole;
  return result[of].links ? 100 * result[of].hits[i] / result[of].links : null;
}
function drawStudy() {
  const of = $('study-of').value, heads = Array.from({length: L * NH}, (_, i) => i),
      all = study.results.flatMap(r => heads.map(i => studied(r, of, i) ?? 0));
  const most = of === 'loss' ? Math.max(1e-9, ...all) : 100,
      text = x => x === null ? '' : of === 'loss' ? fixed(x, 3) : fixed(x, 0);
  $('study-table').tHead.replaceChildren(element('tr', {}, element('th', {}, 'step'),
      ...study.steps.map(step => element('th', {}, String(step)))));
  $('study-table').tBodies[0].replaceChildren(...heads.map(i => element('tr', {},
      element('td', {}, headName(i)), ...study.steps.map((step, c) => {
    const x = studied(study.results[c], of, i), cell = element('td', {'data-head': i, 'data-checkpoint': c});
    if (x === null) return cell;
    const button = element('button', {'aria-label': `${headName(i)}, step ${step}: ${text(x)}`,
        onclick: () => {
      Object.assign(state, {l: Math.floor(i / NH), h: i % NH});
      state.s = strongest();
      if (whatIf.checkpoint === c) choose({}); else askAgain({checkpoint: c});
    }}, text(x));
    paint(button, Math.max(0, x) / most);
    cell.append(button);
    return cell;
  }))));
  const c = study.results.findLastIndex(r => r), r = study.results[c];
  if (!r) return;
  const best = kind => heads.reduce((b, i) => r[kind].hits[i] > r[kind].hits[b] ? i : b, 0),
      share = (kind, i) => `${fixed(100 * r[kind].hits[i] / r[kind].links, 0)} % of ${r[kind].links}`;
  const chance = kind => ` (${fixed(100 * r[kind].chance / r[kind].links, 0)} % by chance)`;
  const worst = heads.reduce((b, i) => r.loss.without[i] > r.loss.without[b] ? i : b, 0);
  $('study-says').textContent = `After step ${r.step}: ${headName(best('persons'))} finds who ` +
    `\u201che\u201d and \u201cshe\u201d are for ${share('persons', best('persons'))} pronouns` +
    `${chance('persons')}, ${headName(best('things'))} what \u201cit\u201d is for ` +
    `${share('things', best('things'))}${chance('things')}. The loss, ${fixed(r.loss.whole, 3)}, ` +
    `rises most without ${headName(worst)}, to ${fixed(r.loss.without[worst], 3)}.`;
}
async function measureHeads() {
  if (study.running) return;
  study.running = true;
  $('study').disabled = true;
  try {
    for (let c = study.steps.length - 1; c >= 0; c--) {
      if (study.results[c]) continue;
      $('study').textContent = `measuring step ${study.steps[c]} \u2026`;
      study.results[c] = await ask(`heads?checkpoint=${c}`);
      drawStudy();
    }
    $('study').textContent = 'measured';
  } catch (e) {
    $('study-says').textContent = e.message;
    $('study').textContent = 'measure the others';
    $('study').disabled = false;
  }
  study.running = false;
}
function startStudy(steps) {
  study.steps = steps;
  study.results = steps.map(() => null);
  $('heads-study').hidden = false;
  $('study').onclick = measureHeads;
  $('study-of').onchange = drawStudy;
  drawStudy();
}
