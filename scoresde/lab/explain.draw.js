'use strict';
// The page draws numbers that the library computed. Positions are whole numbers from 0 to story.levels across the
// window of their time, whose half side is `width`. window.explain.shown() returns what was last drawn, in data units.
const story = JSON.parse(document.getElementById('story').textContent);
const $ = id => document.getElementById(id);
const made = (tag, props, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
const reduced = matchMedia('(prefers-reduced-motion: reduce)');
const now = {
  law: 'plane', process: 'vp', steps: story.steps[story.steps.length >> 1], eta: 1, rate: 'medium',
  frame: 0, follow: Math.min(8, story.shown - 1), playing: false,
};
const EDGE = 0.035;  // of a picture's side, around the window
const THREADS = 72;  // paths that are drawn on a line
const RECENT = 8;  // states of the path in the plane that are drawn in full

const WAYS = [
  { key: 'forward', name: 'The truth', about: 'data, noised exactly' },
  { key: 'ddpm', name: 'DDPM', about: 'a predictor', run: () => `ancestral/${now.eta}/${now.steps}` },
  { key: 'langevin', name: 'Annealed Langevin', about: 'a corrector alone',
    run: () => `langevin/${now.rate}/${now.steps}` },
  { key: 'pc', name: 'Predictor-corrector', about: 'both in turn', run: () => `corrected/${now.rate}/${now.steps}` },
  { key: 'ddim', name: 'DDIM', about: 'no noise', run: () => `ancestral/0/${now.steps}` },
  { key: 'flow', name: 'Probability flow', about: 'the ODE, finely', run: () => `flow/${story.steps.at(-1)}` },
];
const SAMPLERS = WAYS.slice(1);

// ---- numbers

let raw;
const arrays = new Map();

async function unpack() {
  const packed = Uint8Array.from(atob($('numbers').textContent.trim()), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  raw = new Uint8Array(await new Response(stream).arrayBuffer());
}

function array(name) {
  if (!arrays.has(name)) {
    const { at, shape, bytes } = story.arrays[name], n = shape.reduce((a, b) => a * b), row = n / shape[0];
    const out = bytes === 2 ? new Uint16Array(n) : new Uint8Array(n);
    for (let i = 0; i < n; i++) {
      out[i] = raw[at + i] + (bytes === 2 ? raw[at + n + i] << 8 : 0) + (i < row ? 0 : out[i - row]);
    }
    arrays.set(name, out);
  }
  return arrays.get(name);
}

const sceneName = () => `${now.law}/${now.process}`;
const scene = () => story.scenes[sceneName()];

/** What a way shows at the current frame: its states, the index of the last one reached, and the numbers beside it. */
function view(way) {
  const s = scene(), own = way.run ? way.run() : 'forward', run = way.run ? s.runs[own] : null;
  const frames = run ? run.frames : null, n = frames ? frames.length - 1 : s.last;
  const k = Math.floor(now.frame * n / s.last), frame = frames ? frames[k] : k;
  const measured = run ? run.measured : s.measured, distance = run ? run.distance : s.forward;
  let m = 0;
  while (m + 1 < measured.length && measured[m + 1] <= frame) m++;
  return {
    way, run, k, frame, frameOf: i => frames ? frames[i] : i, x: array(`${sceneName()}/${own}`), d: s.d,
    distance: distance[m], noise: s.floor[s.measured.indexOf(measured[m])],
    nfe: run ? run.nfe[k] : null, off: run && run.off.length ? run.off[k] : null,
  };
}

/** The j-th coordinate of particle i in state k, as a part of the window from 0 to 1. */
const part = (v, k, i, j) => v.x[(k * story.shown + i) * v.d + j] / story.levels;

// ---- pictures

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let colours = {}, heats = new Map();
const cards = {};

function readColours() {
  colours = Object.fromEntries(['page', 'ink', 'soft', 'line', 'heat', 'heat-top', 'follow', ...WAYS.map(w => w.key)]
    .map(name => [name, css(`--${name}`)]));
  heats = new Map();
}

/** A canvas as large as it is on the screen, in device pixels; drawn on in CSS pixels. */
function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = canvas;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  const ctx = canvas.getContext('2d');
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, w, h);
  return { ctx, w, h, ratio };
}

/** The exact density as a picture: of one frame in the plane, of all times on a line. */
function heat(frame) {
  const s = scene(), [count, cells] = story.arrays[`${sceneName()}/density`].shape;
  const index = s.d === 2 ? Math.round(frame / s.every) : 0, key = `${sceneName()}/${index}`;
  if (!heats.has(key)) {
    const values = array(`${sceneName()}/density`), [wide, high] = s.d === 2 ? [cells, cells] : [count, cells];
    const canvas = made('canvas', { width: wide, height: high }), ctx = canvas.getContext('2d');
    const rgb = colours.heat.split(',').map(Number), top = Number(colours['heat-top']);
    const image = ctx.createImageData(wide, high);
    for (let i = 0; i < high; i++) {
      for (let j = 0; j < wide; j++) {
        const value = s.d === 2 ? values[(index * cells + i) * cells + j] : values[j * cells + i];
        image.data.set([...rgb, Math.round(value * top)], 4 * (i * wide + j));
      }
    }
    ctx.putImageData(image, 0, 0);
    heats.set(key, canvas);
  }
  return heats.get(key);
}

/** Where a particle stands in its picture, in CSS pixels. */
function spot(v, k, i, w, h) {
  const inside = u => EDGE + u * (1 - 2 * EDGE);
  if (v.d === 2) return [inside(part(v, k, i, 0)) * w, (1 - inside(part(v, k, i, 1))) * h];
  return [inside(v.frameOf(k) / scene().last) * w, (1 - inside(part(v, k, i, 0))) * h];
}

/** The paths of the first particles, from one state to another. */
function lines(ctx, v, many, first, last, w, h) {
  ctx.lineWidth = 0.8;
  ctx.beginPath();
  for (let i = 0; i < many; i++) {
    ctx.moveTo(...spot(v, first, i, w, h));
    for (let k = first + 1; k <= last; k++) ctx.lineTo(...spot(v, k, i, w, h));
  }
  ctx.stroke();
}

/** Whole paths on a line, drawn once for each run; a picture shows them until now. */
function threads(v, { width, height, clientWidth: w, clientHeight: h }) {
  const card = cards[v.way.key], key = [sceneName(), v.run && v.run.code, width, height, colours.ink].join();
  if (card.threadsOf !== key) {
    card.threads = made('canvas', { width, height });
    const ctx = card.threads.getContext('2d');
    ctx.scale(width / w, height / h);
    ctx.strokeStyle = colours[v.way.key];
    ctx.globalAlpha = 0.28;
    lines(ctx, v, Math.min(THREADS, story.shown), 0, v.run ? v.run.frames.length - 1 : scene().last, w, h);
    card.threadsOf = key;
  }
  return card.threads;
}

function drawCard(way) {
  const v = view(way), { canvas, fields } = cards[way.key], { ctx, w, h, ratio } = prepared(canvas);
  const last = scene().last, span = 1 - 2 * EDGE, hue = colours[way.key];
  ctx.imageSmoothingQuality = 'high';
  ctx.drawImage(heat(v.frame), EDGE * w, EDGE * h, span * w, span * h);
  ctx.lineJoin = 'round';
  if (v.d === 1) {
    ctx.strokeStyle = colours.soft;
    ctx.globalAlpha = 0.45;
    ctx.lineWidth = 1;
    const x = (EDGE + now.frame / last * span) * w;
    ctx.beginPath(); ctx.moveTo(x, EDGE * h); ctx.lineTo(x, (1 - EDGE) * h); ctx.stroke();
  }
  if (v.d === 1) {
    const wide = spot(v, v.k, 0, w, h)[0];
    ctx.globalAlpha = 1;
    if (wide * ratio >= 1) ctx.drawImage(threads(v, canvas), 0, 0, wide * ratio, h * ratio, 0, 0, wide, h);
  } else {
    ctx.strokeStyle = hue;
    ctx.globalAlpha = 0.2;
    lines(ctx, v, story.shown, Math.max(0, v.k - 1), v.k, w, h);
  }
  ctx.fillStyle = hue;
  ctx.globalAlpha = v.d === 1 ? 0.5 : 0.85;
  const radius = Math.max(1.15, w / 190);
  for (let i = 0; i < story.shown; i++) {
    const [x, y] = spot(v, v.k, i, w, h);
    ctx.beginPath(); ctx.arc(x, y, radius, 0, 7); ctx.fill();
  }
  ctx.globalAlpha = 1;
  ctx.strokeStyle = colours.follow;
  ctx.lineWidth = 1.3;
  const recent = v.d === 1 ? 0 : Math.max(0, v.k - RECENT);
  for (const [from, to, alpha] of [[0, recent, 0.3], [recent, v.k, 1]]) {
    ctx.globalAlpha = alpha;
    ctx.beginPath();
    for (let k = from; k <= to; k++) ctx.lineTo(...spot(v, k, now.follow, w, h));
    ctx.stroke();
  }
  const [x, y] = spot(v, v.k, now.follow, w, h);
  ctx.fillStyle = colours.follow;
  ctx.beginPath(); ctx.arc(x, y, radius + 2, 0, 7); ctx.fill();
  fields.distance.replaceChildren(shownNumber(v.distance));
  fields.noise.textContent = shownNumber(v.noise);
  if (fields.nfe) fields.nfe.textContent = v.nfe;
  if (fields.off) fields.off.textContent = v.off === null ? '' : shownNumber(v.off);
  cards[way.key].drawn = v;
}

const shownNumber = v => v === 0 ? '0' : v < 0.001 ? v.toExponential(0).replace('e-', '·10⁻').replace(/(\d+)$/,
  digits => [...digits].map(c => '⁰¹²³⁴⁵⁶⁷⁸⁹'[c]).join('')) : v.toFixed(3);

function drawChart() {
  const { ctx, w, h } = prepared($('chart')), s = scene(), left = 44, right = 12, top = 10, bottom = 26;
  const curves = SAMPLERS.map(way => ({ way, run: s.runs[way.run()] }));
  const all = [...s.least, ...s.most, ...curves.flatMap(c => c.run.distance)];
  const low = Math.log(Math.min(...all) * 0.85), high = Math.log(Math.max(...all) * 1.15);
  const X = f => left + f / s.last * (w - left - right);
  const Y = v => h - bottom - (Math.log(v) - low) / (high - low) * (h - top - bottom);
  ctx.font = '12px system-ui, sans-serif';
  ctx.lineWidth = 1;
  ctx.textAlign = 'right';
  ctx.textBaseline = 'middle';
  for (const tick of [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10]) {
    if (Math.log(tick) < low || Math.log(tick) > high) continue;
    ctx.strokeStyle = colours.line; ctx.fillStyle = colours.soft;
    ctx.beginPath(); ctx.moveTo(left, Y(tick)); ctx.lineTo(w - right, Y(tick)); ctx.stroke();
    ctx.fillText(tick, left - 8, Y(tick));
  }
  ctx.textBaseline = 'bottom';
  ctx.fillStyle = colours.soft;
  ctx.textAlign = 'left'; ctx.fillText('noise', left, h - 4);
  ctx.textAlign = 'right'; ctx.fillText('data', w - right, h - 4);
  ctx.strokeStyle = colours.soft;
  ctx.beginPath(); ctx.moveTo(X(now.frame), top); ctx.lineTo(X(now.frame), h - bottom); ctx.stroke();
  const trace = (frames, values, upto) => {
    ctx.beginPath();
    frames.forEach((f, i) => f <= upto && ctx.lineTo(X(f), Y(values[i])));
    ctx.stroke();
  };
  ctx.fillStyle = colours.soft; ctx.globalAlpha = 0.14;
  ctx.beginPath();
  s.measured.forEach((f, i) => ctx.lineTo(X(f), Y(s.least[i])));
  [...s.measured.keys()].reverse().forEach(i => ctx.lineTo(X(s.measured[i]), Y(s.most[i])));
  ctx.fill();
  ctx.globalAlpha = 1; ctx.setLineDash([5, 4]); ctx.lineWidth = 1.6; ctx.strokeStyle = colours.soft;
  trace(s.measured, s.floor, s.last);
  ctx.setLineDash([]);
  for (const { way, run } of curves) {
    ctx.strokeStyle = colours[way.key];
    ctx.lineWidth = 1.4; ctx.globalAlpha = 0.35; trace(run.measured, run.distance, s.last);
    ctx.lineWidth = 2.2; ctx.globalAlpha = 1; trace(run.measured, run.distance, now.frame);
  }
}

function drawClock() {
  const s = scene(), t = s.t[now.frame], level = s.sigma[now.frame] / s.alpha[now.frame];
  $('time').value = now.frame;
  $('time').setAttribute('aria-valuetext', `t = ${t.toPrecision(3)}`);
  $('clock').replaceChildren(`t = ${t.toFixed(3)}`,
    made('small', { textContent: `σ/α = ${level >= 100 ? level.toFixed(0) : level.toPrecision(3)}` }));
}

let waiting = false;
function draw() {
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(drawNow);
  }
}
function drawNow() {
  waiting = false;
  drawClock();
  WAYS.forEach(drawCard);
  drawChart();
}
