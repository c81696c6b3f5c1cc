// The body of a function (element, trigger, props, server, upload, watch): a lesson whose stops drive the viewer.
//
// Its value is the JSON message of viz/lesson.py. Each stop opens a recorded run through the gallery, sets the viewer, asks a
// question and watches `fresco:change` for its answer. Nothing is blocked meanwhile; the stop stands in the address.

const panel = element.querySelector('.fl-lesson');
const bit = (name) => panel.querySelector(`.fl-${name}`);
const LEARNT = 'fresco-lesson';
let lesson = { stops: [], fields: {}, parts: {} }, at = -1, ready = false, left = 0, visit = 0, arriving = false, done = new Set();

function viewerRoot() { return document.querySelector('#viewer .fv-root'); }
function viewer() { return viewerRoot()?.frescoViewer ?? null; }
function gallery() { return document.querySelector('.fg-gallery')?.frescoGallery ?? null; }
/** Our own strings, rendered by viz/lesson.py without any HTML of a lesson's author. */
function put(name, markup) { bit(name).innerHTML = markup; bit(name).hidden = !markup; }

// ------------------------------------------------------------------------------------------------------------- the address

/** A page from disk may only rewrite what follows the #, so there the stop stands behind it. */
const onDisk = location.protocol === 'file:';
function address(stop) {
  const url = new URL(location.href), q = onDisk ? new URLSearchParams(url.hash.slice(1)) : url.searchParams;
  if (stop >= 0) q.set('stop', stop + 1); else q.delete('stop');
  if (onDisk) url.hash = q;
  try { history.replaceState(history.state, '', url); } catch { /* some embedding pages forbid it: the lesson goes on without */ }
}
function askedStop() { return Number(new URLSearchParams(onDisk ? location.hash.slice(1) : '').get('stop') ?? new URLSearchParams(location.search).get('stop')); }

/** `?hide=controls,gallery`: a teacher's page shows less. Names not known are said once. */
function hideParts() {
  const asked = (new URLSearchParams(location.search).get('hide') ?? '').split(',').map((n) => n.trim().toLowerCase()).filter(Boolean);
  const known = asked.filter((n) => Object.hasOwn(lesson.parts, n)), unknown = asked.filter((n) => !known.includes(n));
  let sheet = document.querySelector('style[data-fresco-hide]');
  if (known.length && !sheet) sheet = document.head.appendChild(Object.assign(document.createElement('style'), { textContent: '' }));
  if (sheet) {
    sheet.dataset.frescoHide = known.join(',');
    sheet.textContent = known.map((n) => `:is(${lesson.parts[n]}) { display: none !important; }`).join('\n');
  }
  if (unknown.length) setTimeout(() => viewer()?.receive({ type: 'note', level: 'warn',
    text: `The address hides ${unknown.join(', ')}, which is no part of this page; there are ${Object.keys(lesson.parts).join(', ')}.` }), 0);
}

// --------------------------------------------------------------------------------------------------------------- a stop

async function go(k, focus = false) {
  const stop = lesson.stops[k], mine = ++visit;
  if (!stop) return;
  at = k; left = k; ready = false;
  address(k);
  draw();
  if (focus) bit('title').focus({ preventScroll: false });
  const shown = await setUp(stop);
  if (mine !== visit) return;
  ready = shown;
  bit('wrong').textContent = shown ? '' : 'The run of this stop could not be shown; the text still holds.';
  panel.dataset.ready = shown;
}

/** Brings the viewer to where the stop begins. */
async function setUp(stop) {
  const { run, tau, nfe, layer, align, step, token, beside: label } = stop.view;
  if (!viewer() || !gallery()) return false;
  if (viewer().state().run !== `recorded:${run}` && !(await gallery().open(run))) return false;
  const v = viewer();
  v.pause();
  if (nfe !== null && v.state().nfe !== nfe) v.setNfe(nfe);
  if (tau !== null) v.setTau(tau);
  await setBeside(label);
  v.setAlign(align);
  v.setLayer(layer);
  v.setToken(token);
  v.setStep(step);
  return true;
}

/** Two pictures, the right one the run of that label. The viewer fills its menu when it draws, so this may take a frame or two. */
async function setBeside(label) {
  const done = () => { const { panes } = viewer()?.state() ?? {}; return panes?.length === 2 && (!label || panes[1].label === label); };
  for (let k = 0; k < 40 && !done(); k++) {
    const two = viewerRoot()?.querySelector('.fv-count[value="2"]'), select = viewerRoot()?.querySelector('.fv-pane:nth-of-type(2) .fv-ref');
    if (two && viewer().state().panes.length > 2) { two.checked = true; two.dispatchEvent(new Event('change', { bubbles: true })); }
    const found = label && [...(select?.options ?? [])].find((o) => o.text === label);
    if (found) { select.value = found.value; select.dispatchEvent(new Event('change', { bubbles: true })); }
    await new Promise((next) => { setTimeout(next, 25); });
  }
}
function besideNow() { return viewer()?.state().panes[1]?.label ?? null; }

function leave() {
  visit++;
  at = -1; ready = false;
  address(-1);
  draw();
  bit('start').focus();
}

// -------------------------------------------------------------------------------------------------------------- answers

const within = (x, [low, high]) => x !== null && (low === null || x >= low * (1 - 1e-6)) && (high === null || x <= high * (1 + 1e-6));

/** What is known of the selected token at the step shown: the names an answer may ask for. */
function tokenKinds(v, now) {
  const frames = v.store.tracks.get(0)?.frames ?? [], shape = frames[0]?.shape, token = now.token;
  if (!token || !shape) return new Set();
  const story = v.pure.lineage(frames, (token[0] * shape[1] + token[1]) * shape[2] + token[2]), here = story.find((p) => p.i === now.step);
  const kinds = new Set(['any']), up = story.filter((p) => p.promoted).at(-1);
  if (here) kinds.add(here.level === frames[0].levels ? 'fine' : 'coarse');
  if (here?.v > 0 && now.tau > 0) kinds.add(here.v <= now.tau ? 'settled' : 'moving');
  if (up) kinds.add(up.forced && !(up.v <= up.tau) ? 'forced' : 'early');
  return kinds;
}

const HOLDS = {
  step: (want, v, now) => within(now.step, want),
  tau: (want, v, now) => within(now.tau, want),
  nfe: (want, v, now) => within(now.nfe, want),
  layer: (want, v, now) => now.layer === want,
  align: (want, v, now) => now.align === want,
  beside: (want) => besideNow() === want,
  token: (want, v, now) => tokenKinds(v, now).has(want),
};

function check(event) {
  const stop = lesson.stops[at], v = viewer();
  // The page's own first run may come after the stop that the address asks for: then the stop is set up once more.
  if (arriving && ready && stop && event.detail.changed.includes('run') && event.detail.run !== `recorded:${stop.view.run}`) { go(at); return; }
  drawFigure(stop);
  // Setting up is not an answer; playback counts, since it was the reader who pressed play.
  if (!ready || !stop || done.has(at) || !v || event.detail.by === 'api' || event.detail.by === 'data') return;
  const now = v.state();
  if (now.run !== `recorded:${stop.view.run}`) return;
  const conditions = Object.entries(stop.answer);
  if (conditions.length && conditions.every(([name, want]) => HOLDS[name]?.(want, v, now))) { done.add(at); remember(); answered(); }
}

function answered() {
  const stop = lesson.stops[at], yes = Boolean(stop) && done.has(at);
  panel.dataset.answered = yes;
  if (bit('right').innerHTML !== (yes ? stop.right : '')) bit('right').innerHTML = yes ? stop.right : '';
  [...bit('dots').querySelectorAll('button')].forEach((dot, k) => { dot.dataset.done = done.has(k); dot.setAttribute('aria-label', `Stop ${k + 1}${done.has(k) ? ', answered' : ''}`); });
}

function remember() { try { sessionStorage.setItem(LEARNT, JSON.stringify([lesson.title, [...done]])); } catch { /* private windows may not store */ } }
function recall() {
  try { const [title, stops] = JSON.parse(sessionStorage.getItem(LEARNT)); if (title === lesson.title) done = new Set(stops); } catch { done = new Set(); }
}

// -------------------------------------------------------------------------------------------------------------- drawing

function draw() {
  const stop = lesson.stops[at], on = Boolean(stop), count = lesson.stops.length;
  panel.hidden = !count;
  panel.dataset.stop = on ? at + 1 : '';
  panel.dataset.ready = 'false';
  document.querySelector('.fg-gallery')?.toggleAttribute('data-small', on);          // the pictures are needed further down
  bit('start').hidden = on; bit('nav').hidden = bit('dots').hidden = bit('stop').hidden = !on;
  bit('name').innerHTML = lesson.title;
  bit('wrong').textContent = '';
  bit('start').textContent = left || done.size ? `Go on at stop ${left + 1}` : 'Start the lesson';
  bit('where').textContent = on ? `Stop ${at + 1} of ${count}` : `${count} stops, one question each. Leave and come back as you like.`;
  if (!on) return;
  put('title', stop.title); put('body', stop.body); put('ask', stop.ask); put('hint', stop.hint);
  bit('clue').hidden = !stop.hint; bit('clue').open = false;
  bit('task').hidden = !stop.ask;
  bit('sources').hidden = !stop.sources.length;
  bit('sources').replaceChildren(...stop.sources.map((s) => Object.assign(document.createElement('a'), { href: s.url, textContent: s.title, target: '_blank', rel: 'noopener' })));
  if (stop.sources.length) bit('sources').prepend('Sources: ');
  disable('prev', at === 0); disable('next', at === count - 1);
  [...bit('dots').querySelectorAll('button')].forEach((dot, k) => (k === at ? dot.setAttribute('aria-current', 'step') : dot.removeAttribute('aria-current')));
  answered();
  bit('figure').replaceChildren();
  drawFigure(stop);
}

/** Not `disabled`: that would take the focus away from who is just pressing it. */
function disable(name, off) { if (off) bit(name).setAttribute('aria-disabled', 'true'); else bit(name).removeAttribute('aria-disabled'); }

function buildDots() {
  bit('dots').replaceChildren(...lesson.stops.map((stop, k) => {
    const item = document.createElement('li'), dot = Object.assign(document.createElement('button'), { type: 'button', textContent: k + 1 });
    dot.onclick = () => go(k);
    item.append(dot);
    return item;
  }));
}

// -- drawings of the run's own noise

const fields = new Map();
/** The field on the finest pixels, in its unit; coarse values are half the sum of four (METHOD 2.1). */
function fieldOf(run) {
  if (!fields.has(run)) {
    const raw = lesson.fields[run], bytes = Uint8Array.from(atob(raw.values), (c) => c.charCodeAt(0));
    const fine = Float32Array.from(new Int8Array(bytes.buffer), (n) => n / raw.unit), rows = raw.rows >> 1, cols = raw.cols >> 1;
    const four = (r, c) => [fine[2 * r * raw.cols + 2 * c], fine[2 * r * raw.cols + 2 * c + 1], fine[(2 * r + 1) * raw.cols + 2 * c], fine[(2 * r + 1) * raw.cols + 2 * c + 1]];
    const coarse = new Float32Array(rows * cols);
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) coarse[r * cols + c] = four(r, c).reduce((sum, n) => sum + n, 0) / 2;
    fields.set(run, { fine: { rows: raw.rows, cols: raw.cols, values: fine }, coarse: { rows, cols, values: coarse }, four, patch: raw.patch });
  }
  return fields.get(run);
}

function paint(canvas, { rows, cols, values }, crop) {
  const [top, left_, height, width] = crop ?? [0, 0, rows, cols], pen = canvas.getContext('2d'), image = pen.createImageData(width, height);
  canvas.width = width; canvas.height = height;
  for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) {
    const grey = Math.max(0, Math.min(255, 128 + 48 * values[(top + r) * cols + left_ + c]));
    image.data.set([grey, grey, grey, 255], 4 * (r * width + c));
  }
  pen.putImageData(image, 0, 0);
}

function plate(words, small) {
  const box = document.createElement('div'), canvas = document.createElement('canvas');
  box.className = `fl-plate${small ? ' fl-small' : ''}`;
  canvas.setAttribute('role', 'img'); canvas.setAttribute('aria-label', words);
  box.append(canvas, Object.assign(document.createElement('span'), { textContent: words }));
  return box;
}
function sign(text) { return Object.assign(document.createElement('span'), { className: 'fl-sign', textContent: text, ariaHidden: 'true' }); }
const signed = (x) => (x < 0 ? `−${(-x).toFixed(2)}` : x.toFixed(2));

function drawFigure(stop) {
  const figure = bit('figure');
  figure.hidden = !stop?.figure;
  if (!stop?.figure) return;
  const shown = viewer()?.state().token ?? stop.view.token ?? [0, 0, 0], name = `${stop.figure} ${stop.view.run} ${shown}`;
  if (figure.dataset.name === name && figure.children.length) return;
  figure.dataset.name = name;
  const field = fieldOf(stop.view.run), p = field.patch, row = (shown[1] >> 1) * p, col = (shown[2] >> 1) * p;     // of the coarse token's first pixel
  const plates = Object.assign(document.createElement('div'), { className: 'fl-plates' });
  const add = (words, values, crop, small) => { const box = plate(words, small); paint(box.firstChild, values, crop); plates.append(box); };
  const [a, b, c, d] = field.four(row, col), low = (a + b + c + d) / 2, sum = Object.assign(document.createElement('p'), { className: 'fl-sum' });
  if (stop.figure === 'field') {
    add(`full resolution, ${2 * p} × ${2 * p}`, field.fine, [2 * row, 2 * col, 2 * p, 2 * p]);
    plates.append(sign('→'));
    add(`sketch, ${p} × ${p}`, field.coarse, [row, col, p, p]);
    sum.textContent = `Upper left corner: (${[a, b, c, d].map(signed).join(' + ')}) / 2 = ${signed(low)}`;
  } else {
    const signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], names = ['parent', 'left − right', 'top − bottom', 'diagonal'];
    const part4 = (k) => {
      const values = new Float32Array(p * p);
      for (let r = 0; r < p; r++) for (let q = 0; q < p; q++) values[r * p + q] = field.four(row + r, col + q).reduce((s, n, j) => s + signs[k][j] * n, 0) / 2;
      return { rows: p, cols: p, values };
    };
    names.forEach((words, k) => { add(words, part4(k), null, true); plates.append(sign(k < 3 ? '+' : '→')); });
    add('four children', field.fine, [2 * row, 2 * col, 2 * p, 2 * p]);
    const e = signs.map((s) => s[0] * a + s[1] * b + s[2] * c + s[3] * d).map((x) => x / 2);
    sum.textContent = `First child’s first number: (${e.map(signed).join(' + ')}) / 2 = ${signed(e.reduce((s, n) => s + n, 0) / 2)}`;
  }
  sum.textContent = sum.textContent.replaceAll('+ −', '− ');
  figure.replaceChildren(plates, sum);
}

// ---------------------------------------------------------------------------------------------------------------- start

/** At a link's stop: once the viewer has its first run, so that the page's own choice does not come later. */
function arrive() {
  const asked = askedStop();
  if (!Number.isInteger(asked) || !lesson.stops[asked - 1] || at >= 0) return;
  at = asked - 1;
  arriving = true;
  for (const act of ['pointerdown', 'keydown']) document.addEventListener(act, () => { arriving = false; }, { once: true, capture: true });
  draw();
  let waits = 0;
  const wait = setInterval(() => {
    if (!panel.isConnected || at !== asked - 1 || ready) { clearInterval(wait); return; }
    if (!(viewer() && gallery()?.slugs().length && (viewer().state().run || ++waits > 100))) return;
    clearInterval(wait);
    go(asked - 1);
  }, 100);
}

function take() {
  let given;
  try { given = JSON.parse(props.value || 'null'); } catch { return; }
  if (!given || !Array.isArray(given.stops)) return;
  lesson = given;
  hideParts();
  recall();
  buildDots();
  draw();
  arrive();
}

if (panel) {
  bit('start').onclick = () => go(left, true);
  bit('leave').onclick = leave;
  bit('prev').onclick = () => { if (at > 0) go(at - 1); };
  bit('next').onclick = () => { if (at < lesson.stops.length - 1) go(at + 1); };
  bit('again').onclick = () => go(at);
  bit('go').onclick = () => { const canvas = viewerRoot()?.querySelector('.fv-canvas'); canvas?.scrollIntoView({ block: 'nearest' }); canvas?.focus(); };
  document.addEventListener('fresco:change', (event) => { if (panel.isConnected) check(event); });
  watch('value', take);
  take();
}
