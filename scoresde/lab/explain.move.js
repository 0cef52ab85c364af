
// ---- words

function drawWords() {
  const s = scene(), steps = now.steps === 1 ? 'step' : 'steps';
  $('table').replaceChildren(...SAMPLERS.map(way => {
    const run = s.runs[way.run()], cells = [run.nfe.at(-1), shownNumber(run.distance.at(-1)),
      run.off.length ? shownNumber(run.off.at(-1)) : '–'];
    const name = made('th', { scope: 'row', textContent: titled(way) });
    return made('tr', {}, name, ...cells.map(c => made('td', { textContent: c })));
  }));
  for (const way of SAMPLERS) {
    $(`code-${way.key}`).textContent = s.runs[way.run()].code;
    cards[way.key].title.textContent = titled(way);
  }
  const [floor, least, most] = [s.floor, s.least, s.most].map(values => shownNumber(values.at(-1)));
  $('alone').textContent = `${floor}, from ${least} to ${most}`;
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
