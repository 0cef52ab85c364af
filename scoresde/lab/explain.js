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

function drawCard(way) {
  const v = view(way), { canvas, fields } = cards[way.key], { ctx, w, h } = prepared(canvas);
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
  ctx.strokeStyle = hue;
  const first = v.d === 1 ? 0 : Math.max(0, v.k - 1), tails = v.d === 1 ? Math.min(72, story.shown) : story.shown;
  ctx.globalAlpha = v.d === 1 ? 0.22 : 0.2;
  ctx.lineWidth = 0.8;
  ctx.beginPath();
  for (let i = 0; i < tails; i++) {
    ctx.moveTo(...spot(v, first, i, w, h));
    for (let k = first + 1; k <= v.k; k++) ctx.lineTo(...spot(v, k, i, w, h));
  }
  ctx.stroke();
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

// ---- words

function drawWords() {
  const s = scene(), steps = now.steps === 1 ? 'step' : 'steps';
  $('table').replaceChildren(...SAMPLERS.map(way => {
    const alone = `${shownNumber(s.floor.at(-1))} (${shownNumber(s.least.at(-1))}–${shownNumber(s.most.at(-1))})`;
    const run = s.runs[way.run()], cells = [run.nfe.at(-1), shownNumber(run.distance.at(-1)), alone,
      run.off.length ? shownNumber(run.off.at(-1)) : '–'];
    const name = made('th', { scope: 'row', textContent: titled(way) });
    return made('tr', {}, name, ...cells.map(c => made('td', { textContent: c })));
  }));
  for (const way of SAMPLERS) {
    $(`code-${way.key}`).textContent = s.runs[way.run()].code;
    cards[way.key].title.textContent = titled(way);
  }
  $('begin').textContent = s.code;
  $('rate-hint').textContent =
    `A correction moves by e = rσ², r = ${story.rates[now.rate]}: small is slow, large is wrong.`;
  $('seen').textContent = `The law of the data is ${s.problem}. ` + (now.law === 'plane'
    ? 'Each point is a particle; the shade behind it is the exact density at its time, and thin lines are the step that '
      + 'it took last. The strong line is the path of one particle.'
    : 'Time runs to the right, from noise to data; the shade is the exact density at every time. Lines are paths of '
      + 'particles, points where they are now. The strong line is the path of one particle.')
    + ' Its start is the same in all pictures but the first. What is outside the window is drawn at its edge.';
  $('status').textContent = `${now.steps} ${steps}, ${now.process.toUpperCase()}: ` + SAMPLERS.map(way => {
    const run = s.runs[way.run()];
    return `${titled(way)} ends at distance ${shownNumber(run.distance.at(-1))} after ${run.nfe.at(-1)} calls`;
  }).join('; ') + `; noise alone ${shownNumber(s.floor.at(-1))}.`;
  for (const way of WAYS) {
    cards[way.key].canvas.setAttribute('aria-label', `${titled(way)}: particles in front of the exact density`);
  }
}

const titled = way => way.key === 'ddpm' && now.eta !== 1 ? `DDPM’s step, η = ${now.eta}` : way.name;

// ---- controls

const OPTIONS = {
  steps: story.steps.map(n => [n, n]),
  eta: story.etas.map(v => [v, v === 0.5 ? '½' : v]),
  rate: Object.keys(story.rates).map(name => [name, name]),
  process: [['vp', 'VP'], ['ve', 'VE']],
};

function set(change) {
  Object.assign(now, change);
  for (const name of Object.keys(OPTIONS)) {
    for (const input of document.getElementsByName(name)) input.checked = input.value === String(now[name]);
  }
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const chosen = tab.dataset.law === now.law;
    tab.setAttribute('aria-selected', chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) $('stage').setAttribute('aria-labelledby', tab.id);
  }
  $('follow').value = now.follow + 1;
  drawWords();
  draw();
}

function moveTo(frame) {
  now.frame = Math.max(0, Math.min(scene().last, frame));
  draw();
}

let before = 0;
function play(on) {
  now.playing = on;
  $('play').textContent = on ? 'Pause' : 'Play';
  $('play').setAttribute('aria-pressed', on);
  if (!on) return;
  if (now.frame === scene().last) moveTo(0);
  before = performance.now();
  requestAnimationFrame(tick);
}
function tick(time) {
  if (!now.playing) return;
  const last = scene().last, [jump, pause] = reduced.matches ? [Math.ceil(last / 10), 900] : [1, 8000 / last];
  const many = Math.floor((time - before) / pause);
  if (many > 0) {
    before += many * pause;
    moveTo(now.frame + many * jump);
  }
  if (now.frame === last) play(false); else requestAnimationFrame(tick);
}

function build() {
  for (const way of WAYS) {
    const canvas = made('canvas'), fields = {}, dl = made('dl'), title = made('span', { textContent: way.name });
    canvas.setAttribute('role', 'img');
    canvas.dataset.way = way.key;
    const names = { distance: 'Distance', noise: 'Noise alone', ...(way.run ? { nfe: 'Calls' } : {}),
      ...(['ddim', 'flow'].includes(way.key) ? { off: 'Off flow' } : {}) };
    for (const [key, said] of Object.entries(names)) {
      fields[key] = made('dd');
      dl.append(made('div', {}, made('dt', { textContent: said }), fields[key]));
    }
    const dot = made('span', { className: 'dot' }), card = made('article', { className: 'card' });
    card.style.setProperty('--hue', `var(--${way.key})`);
    card.append(made('h3', {}, dot, title, made('small', { textContent: way.about })), canvas, dl);
    canvas.addEventListener('pointerdown', event => follow(way, event));
    $('cards').append(card);
    cards[way.key] = { canvas, fields, title };
    if (way.run) {
      const item = made('li', {}, made('i'), way.name);
      item.style.setProperty('--hue', `var(--${way.key})`);
      $('legend').append(item);
    }
  }
  $('legend').append(made('li', { className: 'dash' }, made('i'), 'noise alone, mean and range'));
  for (const [name, values] of Object.entries(OPTIONS)) {
    const box = document.querySelector(`[data-name="${name}"] .choices`);
    for (const [value, said] of values) {
      const input = made('input', { type: 'radio', name, value, onchange: () => set({ [name]: value }) });
      box.append(made('label', {}, input, made('span', { textContent: said })));
    }
  }
  for (const button of document.querySelectorAll('[data-set]')) {
    button.addEventListener('click', () => {
      play(false);
      now.frame = 0;
      set(JSON.parse(button.dataset.set));
      $('stage').scrollIntoView({ behavior: reduced.matches ? 'auto' : 'smooth' });
      play(true);
    });
  }
  for (const node of document.querySelectorAll('[data-said]')) node.textContent = story[node.dataset.said];
}

/** Follow the particle that is nearest to where a picture was touched. */
function follow(way, event) {
  const { canvas, drawn } = cards[way.key], box = canvas.getBoundingClientRect();
  let best = 0, least = Infinity;
  for (let i = 0; i < story.shown; i++) {
    const [x, y] = spot(drawn, drawn.k, i, box.width, box.height);
    const far = Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top);
    if (far < least) [best, least] = [i, far];
  }
  set({ follow: best });
}

function listen() {
  $('settings').addEventListener('submit', event => event.preventDefault());
  $('play').addEventListener('click', () => play(!now.playing));
  $('time').max = scene().last;
  $('time').addEventListener('input', () => { play(false); moveTo(Number($('time').value)); });
  $('follow').max = story.shown;
  $('follow').addEventListener('input', () => set({ follow: $('follow').value - 1 }));
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  tabs.forEach((tab, i) => {
    tab.addEventListener('click', () => set({ law: tab.dataset.law }));
    tab.addEventListener('keydown', event => {
      if (event.key !== 'ArrowRight' && event.key !== 'ArrowLeft') return;
      const next = tabs[(i + 1) % tabs.length];
      next.focus();
      next.click();
    });
  });
  document.addEventListener('keydown', event => {
    const own = event.target.closest('button, summary, input, a, [role="tab"], pre');
    if (event.key === ' ' && (!own || own.type === 'range' || own.type === 'radio')) play(!now.playing);
    else if (own) return;
    else if (event.key === 'ArrowRight') { play(false); moveTo(now.frame + 1); }
    else if (event.key === 'ArrowLeft') { play(false); moveTo(now.frame - 1); }
    else return;
    event.preventDefault();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); draw(); });
  new ResizeObserver(draw).observe($('cards'));
}

/** For tests and for embedding: what was last drawn, positions in the data's units and in CSS pixels of each canvas. */
window.explain = {
  now, set, moveTo, play,
  shown() {
    return Object.fromEntries(WAYS.map(({ key }) => {
      const { drawn: v, canvas } = cards[key], w = scene().width[v.frame], each = Array.from({ length: story.shown });
      return [key, {
        frame: v.frame, state: v.k, distance: v.distance, noise: v.noise, nfe: v.nfe, off: v.off,
        x: each.map((_, i) => Array.from({ length: v.d }, (_, j) => (2 * part(v, v.k, i, j) - 1) * w)),
        pixels: each.map((_, i) => spot(v, v.k, i, canvas.clientWidth, canvas.clientHeight)),
      }];
    }));
  },
};

unpack().then(() => {
  readColours();
  build();
  listen();
  now.frame = Math.round(0.7 * scene().last);
  set({});
}, () => {
  $('trouble').textContent = 'This browser cannot unpack the numbers: it takes one of 2023 or later.';
  $('trouble').hidden = false;
});
