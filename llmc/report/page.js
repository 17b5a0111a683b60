'use strict';
/* What all pages have in common: elements, numbers as text, the data in the page or on the server. */
const $ = id => document.getElementById(id);
const SVG = 'http' + '://www.w3.org/2000/svg';
function element(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === 'style') e.style.cssText = value;
    else if (key.startsWith('on')) e[key] = value;
    else if (value !== null && value !== undefined && value !== false)
      e.setAttribute(key, value === true ? '' : value);
  }
  e.append(...children);
  return e;
}
function svg(tag, attributes, ...children) {
  const e = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'style') e.style.cssText = value; /* as an attribute, the server's policy forbids it */
    else e.setAttribute(key, value);
  }
  e.append(...children.filter(child => child !== undefined));
  return e;
}
/* The colour of what a row or a line is about, as a small square. */
const swatch = colour => element('span', {class: 'swatch', style: `background:${colour}`});
/* A bar from left to right; `parts` are {value, colour, faint, title}, `whole` is its full length. A value at
 * `mark` becomes a line across it. */
function bar(parts, whole, mark) {
  let from = 0;
  const share = v => `${(100 * Math.min(1, v / whole)).toFixed(3)}%`;
  const pieces = parts.filter(part => part.value > 0).map(part => {
    const piece = element('i', {class: part.faint ? 'faint' : '', title: part.title,
        style: `left:${share(from)};width:${share(part.value)};background:${part.colour}`});
    from += part.value;
    return piece;
  });
  if (known(mark)) pieces.push(element('i', {class: 'limit', style: `left:${share(mark)}`}));
  return element('span', {class: 'track'}, ...pieces);
}
/* Control characters become their pictures. */
const visible = text => text.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]/g,
    c => c === '\n' ? '\u23ce' : c === '\t' ? '\u21e5'
  : c.charCodeAt(0) < 32 ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : '\ufffd');

/* --- shades of a number from 0 to 1, by its root --- */
let shades = [], pixels; /* 256 colours, as numbers and as pixels */
function makeShades() {
  const style = getComputedStyle(document.documentElement);
  const [low, mid, high] = ['--low', '--mid', '--high']
      .map(n => style.getPropertyValue(n).trim().split(' ').map(Number));
  shades = Array.from({length: 256}, (_, i) => {
    const x = Math.sqrt(i / 255), [a, b, f] = x < 0.5 ? [low, mid, 2 * x] : [mid, high, 2 * x - 1];
    return a.map((from, c) => Math.round(from + (b[c] - from) * f));
  });
  pixels = new Uint32Array(new Uint8Array(shades.flatMap(c => [...c, 255])).buffer);
}
const shade = p => shades[Math.max(0, Math.min(255, Math.round(255 * p)))];
function paint(e, p) {
  const c = shade(p), light = (0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]) > 128;
  e.style.background = `rgb(${c})`;
  e.style.color = light ? '#111' : '#fff';
}

/* Draws again when the window has another size, once a frame. */
function onResize(draw) {
  let frame = 0;
  window.onresize = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(draw); };
}

/* --- numbers --- */
const known = x => x !== null && x !== undefined && Number.isFinite(x);
const fixed = (x, digits) => (Number(x.toFixed(digits)) < 0 ? '\u2212' : '') + Math.abs(x).toFixed(digits);
/* 4 significant digits, with a prefix of 1000s: 12.3k, 7.52M. */
function count(x) {
  if (!known(x)) return '\u2013';
  const steps = [[1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k', 1e3]];
  for (const [from, name, by] of steps) if (Math.abs(x) >= from)
    return String(Number((x / (by || from)).toPrecision(4))) + name;
  return String(Number(x.toPrecision(4)));
}
/* As the programs print them: human_bytes() and human_count() of base.c. */
function withPrefix(x, base, names) {
  let i = 0;
  for (; Math.abs(x) >= base && i + 1 < names.length; i++) x /= base;
  return `${fixed(x, i ? 2 : 0)} ${names[i]}`;
}
const humanBytes = x => withPrefix(x, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']);
const humanCount = x => withPrefix(x, 1000, ['', 'k', 'M', 'G', 'T', 'P']);
/* Any number in few characters. */
function short(x) {
  if (!known(x)) return '\u2013';
  const a = Math.abs(x);
  if (a !== 0 && (a < 1e-3 || a >= 1e7))
    return x.toExponential(2).replace('e+', 'e').replace('-', '\u2212').replace('e-', 'e\u2212');
  return (x < 0 ? '\u2212' : '') + (a >= 1000 ? String(Math.round(a * 10) / 10)
      : String(Number(a.toPrecision(5))));
}
function duration(s) {
  if (!known(s)) return '\u2013';
  const n = Math.round(s), two = x => String(x).padStart(2, '0');
  if (s < 10) return `${Number(s.toPrecision(2))} s`;
  if (n < 60) return `${n} s`;
  if (n < 3600) return `${Math.floor(n / 60)} min ${two(n % 60)} s`;
  if (n < 86400) return `${Math.floor(n / 3600)} h ${two(Math.floor(n / 60) % 60)} min`;
  return `${Math.floor(n / 86400)} d ${two(Math.floor(n / 3600) % 24)} h`;
}

/* --- data --- */
/* What a page in a file has in it; null on a server. */
function embedded(id) {
  const e = $(id);
  return e ? JSON.parse(e.textContent) : null;
}
/* The part of the address behind #; a server's token stays in it. */
const address = new URLSearchParams(location.hash.slice(1));
function setAddress(values) {
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === '') address.delete(key);
    else address.set(key, value);
  }
  try { history.replaceState(null, '', '#' + address); } catch (e) { /* a page without address */ }
}
async function ask(path, body) {
  const headers = address.has('token') ? {Authorization: 'Bearer ' + address.get('token')} : {};
  const answer = await fetch(path, body === undefined ? {headers}
      : {headers, method: 'POST', body: JSON.stringify(body)});
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
