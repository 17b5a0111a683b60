'use strict';
/* Curves as SVG. A chart is given lines of points, draws axes with round numbers, and reports what a pointer
 * or a key asks for: a place on the x-axis to read values at, or a stretch of it to look at closely.
 *
 *   const chart = new Chart(parent, {title, format, onCursor(x), onZoom(from, to), onPoint(i)});
 *   chart.draw({x: {from, to, log, format}, y: {log},
 *               lines: [{name, colour, dash, x, y, low, high, faint, marks, label}],
 *               levels: [{y, name, colour}],
 *               points: [{name, brief, colour, x, y, radius, about}]});
 *   chart.cursor(x);
 *   chart.choose(i);
 *
 * Points are single values with a name each. Where there are some, a pointer or a key asks for the nearest of
 * them instead of a place on the axis.
 */
const COLOURS = 8; /* --c0 ... --c7 in page.css */
const colour = i => `var(--c${i % COLOURS})`;
const DASHES = ['', '7 3', '2 3'];

/* Round numbers from low to high, about n of them. */
function ticks(low, high, n) {
  const raw = (high - low) / Math.max(1, n), power = 10 ** Math.floor(Math.log10(raw)), list = [];
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999) || power;
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step && list.length < 50; i++)
    list.push(Number((i * step).toPrecision(12)));
  return list;
}
function logTicks(low, high, n) {
  const a = Math.log10(low), b = Math.log10(high), each = Math.max(1, Math.ceil((b - a) / n)), list = [];
  if (b - a < 1.2) return ticks(low, high, n).filter(t => t > 0);
  for (let e = Math.ceil(a - 1e-9); e <= b + 1e-9; e += each) list.push(10 ** e);
  if (list.length < 3 && each === 1) for (const e of [...list]) for (const m of [2, 5, 0.5, 0.2]) {
    const t = e * m;
    if (t >= low && t <= high && !list.includes(t)) list.push(t);
  }
  return list.sort((p, q) => p - q);
}
/* The width of a name in a chart (.name in page.css). */
function textWidth(text) {
  textWidth.pen = textWidth.pen || document.createElement('canvas').getContext('2d');
  textWidth.pen.font = '11.5px system-ui, sans-serif';
  return textWidth.pen.measureText(text).width + 2;
}
/* The range that the lines fill. */
function rangeOf(lines, levels, log) {
  let low = Infinity, high = -Infinity;
  const take = v => {
    if (!known(v) || (log && v <= 0)) return;
    low = Math.min(low, v);
    high = Math.max(high, v);
  };
  for (const line of lines) {
    line.y.forEach(take);
    if (line.low) { line.low.forEach(take); line.high.forEach(take); }
  }
  for (const level of levels) take(level.y);
  if (low > high) return null;
  if (high - low <= 1e-9 * Math.abs(high))
    return log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  if (log) { const room = (high / low) ** 0.04; return [low / room, high * room]; }
  const room = (high - low) * 0.04;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

class Chart {
  constructor(parent, {title, unit, format, height, onCursor, onZoom, onPoint}) {
    this.title = title;
    this.format = format || short;
    this.tick = format === count ? count : short;
    this.height = height || 230;
    this.onCursor = onCursor || (() => {});
    this.onZoom = onZoom || (() => {});
    this.onPoint = onPoint || (i => this.choose(i));
    this.points = [];
    this.reading = element('div', {class: 'reading', 'aria-live': 'off'});
    this.picture = svg('svg', {class: 'curves', tabindex: 0, role: 'img', 'aria-label': title});
    this.box = element('figure', {class: 'chart-box', 'data-title': title}, element('figcaption', {}, title,
      element('span', {class: 'dim'}, unit ? ` ${unit}` : '')), this.picture, this.reading);
    parent.append(this.box);
    this.listen();
  }

  listen() {
    const p = this.picture;
    let from = null;
    p.onpointerdown = event => {
      if (event.pointerType === 'mouse' && event.button !== 0) return;
      if (this.points.length) { this.onPoint(this.pointAt(event)); return; }
      from = this.placeOf(event);
      if (event.pointerType === 'mouse') p.setPointerCapture(event.pointerId);
      this.onCursor(this.xAt(from));
    };
    p.onpointermove = event => {
      if (this.points.length) { this.onPoint(this.pointAt(event)); return; }
      const now = this.placeOf(event);
      this.select(from !== null && event.pointerType === 'mouse' ? from : null, now);
      this.onCursor(this.xAt(now));
    };
    p.onpointerup = event => {
      const now = this.placeOf(event);
      this.select(null);
      if (from !== null && event.pointerType === 'mouse' && Math.abs(now - from) > 6) {
        const [a, b] = [this.xAt(from), this.xAt(now)].sort((m, n) => m - n);
        this.onZoom(a, b);
      }
      from = null;
    };
    p.onpointercancel = () => { from = null; this.select(null); };
    p.onpointerleave = () => {
      if (this.points.length) this.onPoint(null);
      else if (from === null) this.onCursor(null);
    };
    p.ondblclick = () => this.onZoom(null, null);
    p.onkeydown = event => this.key(event);
  }

  key(event) {
    if (!this.x || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.points.length) { this.pointKey(event); return; }
    const {from, to} = this.x, at = this.at ?? this.xAt(this.left + this.wide / 2), share = this.placeAt(at);
    const move = event.shiftKey ? null : {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const pan = event.shiftKey ? {ArrowLeft: -0.25, ArrowRight: 0.25}[event.key] : null;
    const zoom = {'+': 0.5, '=': 0.5, '-': 2}[event.key];
    if (move) this.onCursor(this.next(at, move));
    else if (event.key === 'Home') this.onCursor(from);
    else if (event.key === 'End') this.onCursor(to);
    else if (pan)
      this.onZoom(this.xAt(this.left + pan * this.wide), this.xAt(this.left + (1 + pan) * this.wide));
    else if (zoom) {
      const left = share - (share - this.left) * zoom, right = share + (this.left + this.wide - share) * zoom;
      this.onZoom(this.xAt(left), this.xAt(right));
    } else if (event.key === '0' || event.key === 'Escape') this.onZoom(null, null);
    else return;
    event.preventDefault();
  }
  /* The x of the next point of any line, in this direction. */
  next(x, direction) {
    let best = null;
    for (const line of this.lines) for (const v of line.x) {
      if (!known(v) || (v - x) * direction <= 0) continue;
      if (best === null || (v - best) * direction < 0) best = v;
    }
    return best ?? x;
  }

  /* Arrows go through the points from left to right. */
  pointKey(event) {
    const order = this.points.map((_, i) => i).sort((i, j) => this.points[i].x - this.points[j].x);
    const last = order.length - 1, at = order.indexOf(this.chosen);
    const to = {ArrowLeft: at < 0 ? last : Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0,
        End: last, Escape: -1}[event.key];
    if (to === undefined) return;
    this.onPoint(to < 0 ? null : order[to]);
    event.preventDefault();
  }
  /* The point whose rim is nearest to the pointer, at most 40 pixels away, or null. */
  pointAt(event) {
    const box = this.picture.getBoundingClientRect();
    let best = null, least = 40;
    this.points.forEach((point, i) => {
      const away = Math.hypot(this.placeAt(point.x) - event.clientX + box.left,
          this.yPlace(point.y) - event.clientY + box.top) - point.radius;
      if (away < least) { best = i; least = away; }
    });
    return best;
  }

  placeOf(event) { return event.clientX - this.picture.getBoundingClientRect().left; }
  placeAt(x) {
    const {from, to, log} = this.x, f = log ? Math.log : v => v;
    return this.left + (f(Math.max(x, log ? 1e-12 : -Infinity)) - f(from)) / (f(to) - f(from)) * this.wide;
  }
  xAt(place) {
    if (!this.x) return null;
    const {from, to, log} = this.x, share = (place - this.left) / this.wide;
    return log ? from * (to / from) ** share : from + share * (to - from);
  }
  yPlace(y) {
    const [low, high] = this.range, f = this.logY ? Math.log : v => v;
    return this.top + (1 - (f(y) - f(low)) / (f(high) - f(low))) * this.high;
  }

  draw({x, y, lines, levels, points}) {
    const p = this.picture, width = Math.max(160, p.clientWidth || this.box.clientWidth || 320),
        height = this.height;
    this.lines = lines.filter(line => line.x.length);
    this.levels = (levels || []).filter(level => known(level.y));
    this.logY = y && y.log;
    this.points = points || [];
    this.range = rangeOf([...this.lines, {y: this.points.map(point => point.y)}],
        this.lines.length ? this.levels : [], this.logY);
    this.x = x && x.to > x.from ? x : null;
    p.setAttribute('viewBox', `0 0 ${width} ${height}`);
    p.setAttribute('height', height);
    Object.assign(this, {left: 56, top: 8, wide: width - 56 - 12, high: height - 8 - 24});
    if (!this.range || !this.x) {
      p.replaceChildren(svg('text', {x: width / 2, y: height / 2, 'text-anchor': 'middle', class: 'tick'},
          'nothing logged yet'));
      this.cursorParts = null;
      return;
    }
    const parts = [];
    const yTicks = this.logY ? logTicks(...this.range, 5) : ticks(...this.range, 5);
    for (const t of yTicks) {
      const at = this.yPlace(t);
      parts.push(svg('line', {x1: this.left, x2: this.left + this.wide, y1: at, y2: at, class: 'grid'}),
        svg('text', {x: this.left - 6, y: at + 4, 'text-anchor': 'end', class: 'tick'}, this.tick(t)));
    }
    const many = Math.max(2, Math.floor(this.wide / 85));
    for (const t of x.log ? logTicks(x.from, x.to, many) : (x.ticks || ticks)(x.from, x.to, many)) {
      const at = this.placeAt(t);
      if (at < this.left - 1 || at > this.left + this.wide + 1) continue;
      parts.push(svg('line', {x1: at, x2: at, y1: this.top + this.high, y2: this.top + this.high + 4,
          class: 'grid'}),
        svg('text', {x: Math.min(at, width - 18), y: height - 8, 'text-anchor': 'middle', class: 'tick'},
            x.format(t)));
    }
    const frame = [this.left, this.top - 4, this.wide, this.high + 8]; /* what is outside is cut off */
    const curves = svg('svg', {x: frame[0], y: frame[1], width: frame[2], height: frame[3],
        viewBox: frame.join(' '), class: 'frame'});
    for (const line of this.lines) curves.append(...this.curve(line));
    parts.push(curves);
    const taken = []; /* boxes that no name may cover */
    for (const line of this.lines) if (line.label) parts.push(this.lineLabel(line, taken));
    parts.push(...this.dots(taken));
    for (const level of this.levels) {
      const at = this.yPlace(level.y);
      if (!(at > this.top - 1 && at < this.top + this.high + 1)) continue;
      parts.push(svg('line', {x1: this.left, x2: this.left + this.wide, y1: at, y2: at, class: 'level',
          style: `stroke:${level.colour}`}),
        svg('text', {x: this.left + 3, y: at - 5, class: 'tick'}, level.name));
    }
    this.cursorParts = svg('g', {class: 'cursor'});
    this.selection = svg('rect', {y: this.top, height: this.high, x: 0, width: 0, class: 'selection'});
    p.replaceChildren(...parts, this.selection, this.cursorParts);
    if (this.points.length) this.choose(this.chosen ?? null);
    else this.cursor(this.at ?? null);
  }

  curve(line) {
    const parts = [], style = `stroke:${line.colour}`,
        place = i => [this.placeAt(line.x[i]), this.yPlace(line.y[i])];
    const shown = i => known(line.x[i]) && known(line.y[i]) && (!this.logY || line.y[i] > 0) &&
        (!this.x.log || line.x[i] > 0);
    let d = '', pen = false, marks = '';
    for (let i = 0; i < line.x.length; i++) {
      if (!shown(i)) { pen = false; continue; }
      const [a, b] = place(i), text = `${a.toFixed(1)} ${b.toFixed(1)}`;
      d += (pen ? 'L' : 'M') + text;
      if (!pen && !(i + 1 < line.x.length && shown(i + 1)))
        marks += `M${text}h0`; /* a point without neighbours */
      if (line.marks) marks += `M${text}h0`;
      pen = true;
    }
    if (line.low) {
      const up = [], down = [];
      for (let i = 0; i < line.x.length; i++) {
        if (!shown(i) || (this.logY && !(line.low[i] > 0))) continue;
        const a = this.placeAt(line.x[i]).toFixed(1);
        up.push(`${a} ${this.yPlace(line.high[i]).toFixed(1)}`);
        down.unshift(`${a} ${this.yPlace(line.low[i]).toFixed(1)}`);
      }
      if (up.length > 1)
        parts.push(svg('path', {d: `M${up.join('L')}L${down.join('L')}Z`, class: 'band',
          style: `fill:${line.colour}`}));
    }
    parts.push(svg('path', {d, class: 'line' + (line.faint ? ' faint' : ''), style,
        'stroke-dasharray': line.dash || ''}));
    if (marks) parts.push(svg('path', {d: marks, class: 'mark', style}));
    return parts;
  }

  /* A name along the middle of a line's last stretch, above it. */
  lineLabel(line, taken) {
    const ends = [line.x.length - 2, line.x.length - 1]
        .map(i => [this.placeAt(line.x[i]), this.yPlace(line.y[i])]);
    const [[ax, ay], [bx, by]] = ends, angle = Math.atan2(by - ay, bx - ax) * 180 / Math.PI;
    const half = textWidth(line.label) / 2, y = (ay + by) / 2,
        x = Math.min((ax + bx) / 2, this.left + this.wide - half * Math.cos(angle * Math.PI / 180));
    for (let i = 0; i <= 20; i++) { /* the line, and where its name stands */
      const share = i / 20, px = ax + share * (bx - ax), py = ay + share * (by - ay);
      taken.push([px - 3, py - (Math.hypot(px - x, py - y) < half ? 20 : 3), px + 3, py + 3]);
    }
    return svg('text', {transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) rotate(${angle.toFixed(1)})`,
        y: -6, 'text-anchor': 'middle', class: 'tick'}, line.label);
  }

  /* The points, large ones below, and beside each its name, or its brief one, where that covers nothing. */
  dots(taken) {
    const parts = [], names = [], order = this.points.map((_, i) => i)
        .sort((i, j) => this.points[j].radius - this.points[i].radius);
    const places = order.map(i => {
      const {x, y, radius: r} = this.points[i], at = [this.placeAt(x), this.yPlace(y)];
      taken.push([at[0] - r, at[1] - r, at[0] + r, at[1] + r]);
      return at;
    });
    order.forEach((i, k) => {
      const point = this.points[i], [x, y] = places[k];
      parts.push(svg('circle', {cx: x.toFixed(1), cy: y.toFixed(1), r: point.radius.toFixed(1),
          class: 'point', 'data-point': i, style: `fill:${point.colour}`},
        svg('title', {}, `${point.name}: ${point.about}`)));
      for (const name of [point.name, point.brief]) {
        const box = name && this.freeBox(taken, x, y, point.radius, textWidth(name));
        if (!box) continue;
        taken.push(box);
        names.push(svg('path', {d: `M${x.toFixed(1)} ${y.toFixed(1)}L` +
              `${Math.max(box[0], Math.min(x, box[2])).toFixed(1)} ` +
              `${Math.max(box[1], Math.min(y, box[3])).toFixed(1)}`, class: 'leader'}),
          svg('text', {x: box[0].toFixed(1), y: (box[3] - 3).toFixed(1), class: 'name'}, name));
        break;
      }
    });
    return [...parts, ...names];
  }
  /* A box of this width and the height of a line near a point, in eight directions and up to six lines
   * away. */
  freeBox(taken, x, y, radius, width) {
    const high = 14, edge = [this.left, this.top, this.left + this.wide, this.top + this.high];
    for (let ring = 0; ring < 6; ring++) for (const turn of [0, 4, 6, 2, 7, 5, 1, 3]) {
      const angle = turn * Math.PI / 4, away = radius + 4 + 12 * ring,
          cx = x + away * Math.cos(angle), cy = y - away * Math.sin(angle);
      const left = cx - width * (1 - Math.cos(angle)) / 2, top = cy - high * (1 + Math.sin(angle)) / 2;
      const box = [left, top, left + width, top + high];
      if (box[0] < edge[0] || box[1] < edge[1] || box[2] > edge[2] || box[3] > edge[3]) continue;
      if (taken.every(t => t[2] <= box[0] || t[0] >= box[2] || t[3] <= box[1] || t[1] >= box[3])) return box;
    }
    return null;
  }
  choose(i) {
    this.chosen = i;
    for (const dot of this.picture.querySelectorAll('.point'))
      dot.classList.toggle('chosen', Number(dot.dataset.point) === i);
    const point = i === null ? null : this.points[i];
    this.reading.replaceChildren(...(point ? [element('b', {}, point.name), element('span', {}, point.about)]
        : []));
  }

  select(from, to) {
    if (!this.selection) return;
    if (from === null) { this.selection.setAttribute('width', 0); return; }
    this.selection.setAttribute('x', Math.max(this.left, Math.min(from, to)));
    this.selection.setAttribute('width', Math.abs(to - from));
  }

  /* Index of the point of a line that is nearest to x. */
  nearest(line, x) {
    let low = 0, high = line.x.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (line.x[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && Math.abs(line.x[low - 1] - x) <= Math.abs(line.x[low] - x) ? low - 1 : low;
  }

  cursor(x) {
    this.at = x;
    if (!this.cursorParts) { this.reading.replaceChildren(); return; }
    const parts = [], text = [], inside = x !== null && x >= this.x.from && x <= this.x.to;
    for (const line of this.lines) {
      if (line.faint) continue;
      const i = inside ? this.nearest(line, x) : line.x.length - 1;
      if (!known(line.y[i])) continue;
      text.push(element('span', {class: 'value', 'data-line': line.name},
          element('i', {style: `background:${line.colour}`}),
        `${line.name} `, element('b', {}, this.format(line.y[i])),
        line.low && line.low[i] !== line.high[i] ? element('span', {class: 'dim'},
            ` ${this.format(line.low[i])}\u2026${this.format(line.high[i])}`) : ''));
      if (inside && (!this.logY || line.y[i] > 0))
        parts.push(svg('circle', {cx: this.placeAt(line.x[i]), cy: this.yPlace(line.y[i]), r: 3.5,
          style: `fill:${line.colour}`}));
    }
    if (inside) {
      const at = this.placeAt(x);
      parts.unshift(svg('line', {x1: at, x2: at, y1: this.top, y2: this.top + this.high}));
      text.unshift(element('span', {class: 'dim'}, this.x.format(x, true)));
    } else if (text.length) text.unshift(element('span', {class: 'dim'}, 'last'));
    this.cursorParts.replaceChildren(...parts);
    this.reading.replaceChildren(...text);
  }
}
