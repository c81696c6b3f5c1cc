// The body of a function (element, trigger, props, server, upload, watch). Three parts: pure functions on messages and grids,
// the store that keeps every step, and the drawing. Nothing here asks the server for anything but missing steps and a bundle file.
//
// For other scripts (a lesson, a teacher's page): `document.querySelector('.fv-root').frescoViewer`, there as soon as the root is.
//   setStep(i)            go to step i (0-based) of the first run; setStop(k): to the k-th point of the timeline
//   setLayer(1..5)        sketch, variance, levels, promoted, difference; names work too: setLayer('difference')
//   setToken([f, r, c])   select the token over a cell of the finest grid; null clears it
//   setTau(tau)           as letting go of the handle does: a recorded run switches to the nearest recorded tau, a live page is told
//   setNfe(n)             another recorded run, where there is one
//   setAlign('cost' | 'step'), setFrame(k) of a video, setOpacity(0..1)
//   setPanes(2..4)        how many runs side by side; setPane(k, id): what pane k (1..3) shows, a track's id of state().panes
//   play(), pause()       playback of the steps
//   state()               {run, mode, step, steps, stage, sigma, stop, stops, layer, token, tau, nfe, align, frame, frames, opacity, playing,
//                         finished, panes}; step and frame count from 0, token is [f, r, c] or null, null = not known yet
//   receive(message)      take a message of viz/frame.py, an object or its JSON
// A setter returns state(). Nothing throws: what cannot be is clamped or left as it was.
// Events (CustomEvents that bubble): the root sends `fresco:opened` after each message of the page's own, the first of which says
// what opens; and `fresco:change` after every change of the state, once per task:
// detail = {...state(), changed: ['step', ...], by: 'user' | 'api' | 'play' | 'data'}: who did it, a person before all others.

// ---------------------------------------------------------------------------------------------------------------- pure

const LAYERS = ['sketch', 'variance', 'levels', 'promoted', 'difference'];
const STAGES = { low: 'low', mixed: 'mixed', full: 'full' };
const VIRIDIS = [68, 1, 84, 72, 26, 108, 71, 47, 125, 65, 68, 135, 57, 86, 140, 49, 104, 142, 42, 120, 142, 35, 136, 142, 31, 152, 139,
  34, 168, 132, 53, 183, 121, 84, 197, 104, 122, 209, 81, 165, 219, 54, 210, 226, 27, 253, 231, 37];

/** Base64 to bytes. Throws on text that is not base64. */
function decodeBytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) out[k] = raw.charCodeAt(k);
  return out;
}

/** n bits, most significant first (numpy.packbits), to 0/1. */
function decodeBits(packed, n) {
  const out = new Uint8Array(n);
  for (let k = 0; k < n; k++) out[k] = (packed[k >> 3] >> (7 - (k & 7))) & 1;
  return out;
}

function decodeWords(raw) {
  const out = new Uint16Array(raw.length >> 1);
  for (let k = 0; k < out.length; k++) out[k] = raw[2 * k] | (raw[2 * k + 1] << 8);
  return out;
}

/**
 * Numbers the tokens of a ragged grid in scan order.
 * A token only ever loses cells at the right and lower border, so its first cell is always its upper left corner.
 * Returns {index: cell -> token, home: token -> first cell, count}, or null where the levels do not tile the grid.
 */
function numberTokens(level, shape, levels) {
  const [frames, rows, cols] = shape;
  const index = new Int32Array(level.length);
  const home = [];
  for (let f = 0, cell = 0; f < frames; f++) for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++, cell++) {
    const shift = levels - level[cell];
    if (shift < 0) return null;
    const first = (f * rows + ((r >> shift) << shift)) * cols + ((c >> shift) << shift);
    if (level[first] !== level[cell]) return null;
    if (first === cell) { index[cell] = home.length; home.push(cell); } else index[cell] = index[first];
  }
  return { index, home, count: home.length };
}

/** The 16-bit code of a variance: 0 is undefined, 1..65535 is a log scale. Monotone, so codes compare like values. */
function quantise(v, vmin, vmax) {
  if (!(v > 0)) return 0;
  const q = 1 + Math.round(65534 * Math.log(v / vmin) / Math.log(vmax / vmin));
  return Math.min(65535, Math.max(1, q));
}

function dequantise(q, vmin, vmax) { return q ? vmin * (vmax / vmin) ** ((q - 1) / 65534) : NaN; }

/** A checked, decoded step; throws one sentence that says what is wrong. */
function decodeFrame(raw) {
  const need = (ok, what) => { if (!ok) throw new Error(what); };
  const shape = raw.shape;
  need(Array.isArray(shape) && shape.length === 3 && shape.every((n) => Number.isInteger(n) && n > 0), 'it has no grid shape');
  const cells = shape[0] * shape[1] * shape[2];
  need(Number.isInteger(raw.levels) && raw.levels >= 0 && raw.levels < 8, 'its number of levels is not usable');
  const level = decodeBytes(raw.level);
  need(level.length === cells, `its level map has ${level.length} cells, not ${cells}`);
  const grid = numberTokens(level, shape, raw.levels);
  need(grid, 'its level map does not tile the grid');
  need(grid.count === raw.tokens, `it says ${raw.tokens} tokens, its level map has ${grid.count}`);
  need(raw.vmin > 0 && raw.vmax > raw.vmin, 'its variance range is not usable');
  const q = decodeWords(decodeBytes(raw.variance));
  need(q.length === grid.count, `it has ${q.length} variances for ${grid.count} tokens`);
  const packed = decodeBytes(raw.selected);
  need(packed.length === (grid.count + 7) >> 3, 'its mask of promoted tokens has the wrong length');
  need(Number.isFinite(raw.flops), 'it does not say what it cost');
  const selected = decodeBits(packed, grid.count);
  let promoted = 0, coarse = 0, fine = 0, measured = 0;
  for (let t = 0; t < grid.count; t++) {
    promoted += selected[t];
    if (level[grid.home[t]] < raw.levels) coarse++;
    if (q[t]) measured++;
  }
  for (let k = 0; k < cells; k++) if (level[k] === raw.levels) fine++;
  return { ...raw, level, ...grid, q, selected, promoted, coarse, fine, cells, measured, picture: newPicture(raw.preview, raw.frames, raw.columns) };
}

/** Which tokens a threshold would let through: {mask, count} over the tokens that can still be promoted. */
function wouldPromote(frame, tau) {
  const limit = quantise(tau, frame.vmin, frame.vmax);
  const mask = new Uint8Array(frame.count);
  let count = 0;
  for (let t = 0; t < frame.count; t++) {
    if (frame.level[frame.home[t]] < frame.levels && frame.q[t] && frame.q[t] <= limit) { mask[t] = 1; count++; }
  }
  return { mask, count };
}

/** Counts of the promotable tokens' variances in equal bins of log v; values outside the range fall in the end bins. */
function histogram(frame, range, bins) {
  const counts = new Array(bins).fill(0);
  for (let t = 0; t < frame.count; t++) {
    if (!frame.q[t] || frame.level[frame.home[t]] >= frame.levels) continue;
    const x = toUnit(dequantise(frame.q[t], frame.vmin, frame.vmax), range);
    counts[Math.min(bins - 1, Math.floor(x * bins))]++;
  }
  return counts;
}

/** Position of a value on a log range, 0..1, clamped. */
function toUnit(v, range) { return Math.min(1, Math.max(0, Math.log(v / range[0]) / Math.log(range[1] / range[0]))); }
function fromUnit(x, range) { return range[0] * (range[1] / range[0]) ** x; }

/** A colour range that stays put for a whole run: the middle 98 % of the given frames with room for what follows. */
function steadyRange(frames, taus, roomBelow, roomAbove) {
  const values = [];
  for (const f of frames) for (let t = 0; t < f.count; t++) if (f.q[t] && f.level[f.home[t]] < f.levels) values.push(dequantise(f.q[t], f.vmin, f.vmax));
  if (!values.length) return null;
  values.sort((a, b) => a - b);
  const at = (p) => values[Math.min(values.length - 1, Math.floor(p * values.length))];
  const known = taus.filter((t) => t > 0);
  let lo = Math.min(at(0.01) / roomBelow, ...known.map((t) => t / 1.6));
  let hi = Math.max(at(0.99) * roomAbove, ...known.map((t) => t * 1.6));
  lo = Math.max(lo, frames[0].vmin); hi = Math.min(hi, frames[0].vmax);
  if (hi / lo < 30) { const mid = Math.sqrt(hi * lo); lo = mid / 6; hi = mid * 6; }
  return [lo, hi];
}

/** Index of the last step whose total cost is within the budget; -1 before the first step is paid. */
function stepAtCost(frames, budget) {
  let lo = 0, hi = frames.length;
  while (lo < hi) { const mid = (lo + hi) >> 1; if (frames[mid].flops_total <= budget * (1 + 1e-9)) lo = mid + 1; else hi = mid; }
  return lo - 1;
}

/**
 * Every point the timeline can stop at, as {at, a, b, cost, tail}: a position in each list, -1 where that one has no step yet (a and b are
 * the first two). By cost the first list sets the pace; once it is done (tail), every further cost of the others is a stop.
 */
function planStops(lists, align) {
  const make = (at, cost, tail) => ({ at, a: at[0] ?? -1, b: at[1] ?? -1, cost, tail });
  const first = lists[0] ?? [];
  if (align === 'step') {
    return Array.from({ length: Math.max(0, ...lists.map((list) => list.length)) }, (_, k) => {
      const at = lists.map((list) => Math.min(k, list.length - 1));
      return make(at, Math.max(0, ...at.map((n, j) => lists[j][n]?.flops_total ?? 0)), k >= first.length);
    });
  }
  const bought = (cost) => lists.map((list, j) => (j ? stepAtCost(list, cost) : 0));
  const stops = first.map((f, k) => make([k, ...bought(f.flops_total).slice(1)], f.flops_total, false));
  const spent = first.at(-1)?.flops_total ?? 0, later = lists.slice(1).flatMap((list) => list.slice(stepAtCost(list, spent) + 1).map((f) => f.flops_total));
  for (const cost of [...new Set(later)].sort((x, y) => x - y)) stops.push(make([first.length - 1, ...bought(cost).slice(1)], cost, true));
  return stops;
}

/** The settings in which runs differ, as [name, [value of each run]]; what a run does not say is null. `ignored` names are left out. */
function settingsThatDiffer(metas, ignored) {
  const names = [...new Set(metas.flatMap((m) => Object.keys(m ?? {})))].filter((name) => !ignored.includes(name));
  const rows = names.map((name) => [name, metas.map((m) => { const v = m?.[name]; return v === undefined || v === null ? null : Array.isArray(v) ? v.join(' + ') : v; })]);
  return rows.filter(([, values]) => values.some((v) => String(v) !== String(values[0])));
}

/** What happened at one finest cell: the token that covered it at every step. */
function lineage(frames, cell) {
  return frames.map((f) => {
    const t = f.index[cell];
    return { i: f.i, token: t, level: f.level[cell], v: dequantise(f.q[t], f.vmin, f.vmax), promoted: f.selected[t] === 1, forced: f.final, tau: f.tau };
  });
}

/** Where a token lies on the finest grid, clipped at the border: {row, col, height, width}. */
function tokenRect(frame, token) {
  const [, rows, cols] = frame.shape;
  const cell = frame.home[token];
  const row = Math.floor(cell / cols) % rows, col = cell % cols, side = 1 << (frame.levels - frame.level[cell]);
  return { row, col, height: Math.min(side, rows - row), width: Math.min(side, cols - col) };
}

/** The value of the list that is nearest on a log scale; null where the list is empty. */
function nearestLog(list, v) { return list.reduce((best, x) => (best !== null && Math.abs(Math.log(best / v)) <= Math.abs(Math.log(x / v)) ? best : x), null); }

function unit(n, name) {
  if (!Number.isFinite(n)) return '–';
  const k = n > 0 ? Math.min(6, Math.max(0, Math.floor(Math.log10(n) / 3))) : 0;
  return `${short(n / 1000 ** k)} ${['', 'k', 'M', 'G', 'T', 'P', 'E'][k]}${name}`;
}

function short(n) { return n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2); }
function scientific(v) {
  if (!(v > 0)) return 'undefined';
  if (v >= 0.000995 && v < 1000) return String(Number(v.toPrecision(2)));
  const e = Math.floor(Math.log10(v) + 1e-9);
  return `${(v / 10 ** e).toFixed(1)}·10${String(e).replace(/./g, (d) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d] ?? '⁻')}`;
}
function percent(x) { return x > 0 && x < 0.1 ? `${(100 * x).toFixed(1)} %` : `${Math.round(100 * x)} %`; }
function whole(n) { return String(n).replace(/\B(?=(\d{3})+$)/g, ','); }
function plural(n, word) { return `${whole(n)} ${word}${n === 1 ? '' : 's'}`; }

function viridisTable() {
  const out = new Uint8ClampedArray(256 * 3);
  for (let k = 0; k < 256; k++) {
    const x = k / 255 * 15, j = Math.min(14, Math.floor(x));
    for (let c = 0; c < 3; c++) out[3 * k + c] = VIRIDIS[3 * j + c] * (1 - x + j) + VIRIDIS[3 * j + 3 + c] * (x - j);
  }
  return out;
}

// ------------------------------------------------------------------------------------------------------------ pictures

// Pictures are decoded by the browser off this thread, once, and the oldest are let go beyond a budget of pixels.
const PIXEL_BUDGET = 24e6;
const kept = new Set();
let keptPixels = 0, pictureCount = 0;

/** A picture to be decoded; a video's is a sheet of `frames` pictures in `columns`, row by row. */
function newPicture(src, frames, columns) {
  if (typeof src !== 'string' || !/^data:image\/(webp|png|jpeg);base64,/.test(src)) return null;
  const count = Number.isInteger(frames) && frames > 0 ? frames : 1, across = Number.isInteger(columns) && columns > 0 ? Math.min(columns, count) : 1;
  return { src, id: ++pictureCount, bitmap: null, grey: null, asked: false, frames: count, columns: across };
}

async function decodePicture(picture) {
  picture.asked = true;
  try {
    // The decoded element itself is drawn: an ImageBitmap would copy its pixels once more, on this thread.
    const image = new Image();
    image.src = picture.src;
    await image.decode();
    picture.bitmap = image;
  } catch { return; }
  keptPixels += picture.bitmap.naturalWidth * picture.bitmap.naturalHeight;
  kept.add(picture);
  for (const old of kept) {
    if (keptPixels <= PIXEL_BUDGET || old === picture) break;
    keptPixels -= old.bitmap.naturalWidth * old.bitmap.naturalHeight;
    old.bitmap = old.grey = null; old.asked = false; kept.delete(old);
  }
  redrawPictures();
}

function bitmapOf(picture) {
  if (!picture) return null;
  if (!picture.bitmap && !picture.asked) decodePicture(picture);
  if (picture.bitmap) { kept.delete(picture); kept.add(picture); }
  return picture.bitmap;
}

/** The same picture without colour, made once at the picture's own size. */
function greyOf(picture) {
  const bitmap = bitmapOf(picture);
  if (!picture.grey) {
    picture.grey = new OffscreenCanvas(bitmap.naturalWidth, bitmap.naturalHeight);
    const pen = picture.grey.getContext('2d');
    pen.drawImage(bitmap, 0, 0);
    pen.globalCompositeOperation = 'saturation'; pen.fillStyle = '#808080';  // any grey: only its missing saturation is taken
    pen.fillRect(0, 0, picture.grey.width, picture.grey.height);
  }
  return picture.grey;
}

/** Where frame k lies on a picture's sheet: [x, y, width, height]. A picture of one frame stands for all. */
function sheetRect(picture, k) {
  const { frames, columns, bitmap } = picture, rows = Math.ceil(frames / columns);
  const width = bitmap.naturalWidth / columns, height = bitmap.naturalHeight / rows, at = Math.min(frames - 1, k);
  return [(at % columns) * width, Math.floor(at / columns) * height, width, height];
}

/** The picture of a step, or of the nearest step before it whose picture is there (previews may be skipped). */
function pictureAt(frames, at, ready) {
  for (let k = at; k >= 0; k--) {
    const picture = frames[k].picture;
    if (picture && (bitmapOf(picture) || !ready)) return picture;
  }
  return null;
}

// --------------------------------------------------------------------------------------------------------------- store

// A page may have made the viewer already, to show it before the page's own scripts had arrived (early.js): that one moves in.
const early = element.id !== 'fresco-early' && document.querySelector('#fresco-early .fv-root');
if (early) { early.frescoViewer.adopt(element, { trigger, props, server, watch }); return; }

const root = element.querySelector('.fv-root');
const nodes = new Map();
/** The one element with a class, looked up once. */
function $(name) {
  if (!nodes.has(name)) nodes.set(name, root.querySelector(`.fv-${name}`));
  return nodes.get(name);
}
const $$ = (name) => [...root.querySelectorAll(`.fv-${name}`)];
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const LUT = viridisTable();
const uid = `fv${Math.random().toString(36).slice(2, 8)}`;

const store = { run: '', past: new Set(), tracks: new Map(), range: null, stopped: false, bundle: null, base: [], url: '', linked: true, pending: null, recorded: null, wish: null, done: false, chosen: false, opened: false };
const view = { mode: 'live', pos: 0, follow: true, playing: false, layer: 2, opacity: 0.7, align: 'cost', token: null, cursor: null, hover: null,
  tau: null, dragging: false, shown: [], count: 2, chosen: false, against: '', slice: 0, looping: false, speed: 1, toldAt: 0 };
let cause = 'data', told = null, causes = new Set();
let stops = [], waiting = null, loading = 0, timer = 0, looper = 0, drawn = 0, tellTimer = 0, commitTimer = 0, wordsToo = true;

const MOST = 4;                                                           // panes side by side
const FIRST_RECORDED = 1000;                                              // ids of a bundle's other runs: 1000 + index

function newTrack(id, label, of, meta) { return { id, label, of, meta: meta ?? null, frames: [], asked: new Set() }; }
function track(id) { return store.tracks.get(id); }
function fresco() { return track(0)?.frames ?? []; }
/** The tracks of the panes, the first run before all others. */
function shown() { return [0, ...view.shown].map(track); }
function lists() { return shown().map((t) => t?.frames ?? []); }
function reference() { return track(view.shown[0])?.frames ?? []; }
function anyFrame() { return current() ?? lists().find((list) => list.length)?.[0] ?? null; }
function meta() { return track(0)?.meta ?? track(view.shown[0])?.meta ?? {}; }
/** Whether a track is a run of its own, and not a full-resolution reference. */
function isRun(t) { const split = t?.meta?.stages; return t?.id === 0 || (Array.isArray(split) && split[0] + split[1] > 0); }
/** Whether more is compared than one run and one reference. */
function comparing() { return view.shown.length > 1 || view.shown.some((id) => isRun(track(id))); }
function stop() { return stops[view.pos] ?? { at: [], a: -1, b: -1, cost: 0, tail: false }; }
function current() { return fresco()[stop().a] ?? null; }
function recorded() { return view.mode === 'recorded'; }
function complete(t) { return Boolean(t) && t.frames.length === t.of; }

function reset() {
  store.tracks = new Map(); store.range = null; store.stopped = store.done = false;
  Object.assign(view, { pos: 0, follow: true, tau: null, dragging: false, hover: null, slice: 0, shown: [], count: 2, chosen: false, against: '' });
  stops = [];
}

function receive(text, linked) {
  let message;
  try { message = typeof text === 'string' ? JSON.parse(text) : text; } catch { message = null; }
  if (text === '' || text === null || text === undefined) return;
  if (!message || typeof message !== 'object') { say('A message could not be read, so it was left out.', 'warn'); return; }
  const handler = { frame: onFrame, bundle: onBundle, 'bundle-url': onBundleUrl, note: onNote, done: onDone }[message.type];
  if (!handler) { say('A message of an unknown kind was left out.', 'warn'); return; }
  try { handler(message, linked); } catch (error) { say(`A damaged message was left out: ${error.message}.`, 'warn'); }
}

function onNote(message) { say(String(message.text ?? ''), message.level === 'warn' ? 'warn' : 'info'); }

function onFrame(raw) {
  if (typeof raw.run !== 'string' || store.past.has(raw.run)) return;      // a late step of a run that was replaced
  const first = raw.run !== store.run || recorded(), known = !first && store.tracks.has(raw.track);
  const frame = keep(raw, first);
  expect(raw);
  if (!known) say(`Live run: ${frame.label ?? 'Fresco'} is running.`, 'info');
  askForHoles(track(frame.track), frame.i);
  afterData();
}

function keep(raw, startRun) {
  if (![raw.track, raw.i, raw.of].every(Number.isInteger) || raw.i < 0 || raw.i >= raw.of) throw new Error('it does not say which step it is');
  const frame = decodeFrame(raw);                                          // may throw: nothing is replaced before this line
  if (!Number.isFinite(frame.flops_total)) throw new Error('it does not say what was spent so far');
  if (startRun) startLive(raw.run);
  if (!track(frame.track)) store.tracks.set(frame.track, newTrack(frame.track, String(frame.label ?? (frame.track ? 'Reference' : 'Fresco')), frame.of));
  const t = track(frame.track);
  if (!t.frames.length) Object.assign(t, { label: String(frame.label ?? t.label), of: frame.of });
  if (frame.meta) t.meta = frame.meta;
  const at = t.frames.findIndex((f) => f.i >= frame.i);
  if (at < 0) t.frames.push(frame); else t.frames.splice(at, t.frames[at].i === frame.i ? 1 : 0, frame);
  bitmapOf(frame.picture);
  return frame;
}

function startLive(run) {
  if (store.run) store.past.add(store.run);
  setPlaying(false);
  reset();
  loading++;                                                              // a bundle still on its way is no longer wanted
  store.run = run; store.recorded = null; store.chosen = true; view.mode = 'live'; view.token = view.cursor = null;
}

/** Panes for runs that are still to come, so that the page does not jump when they do. */
function expect(raw) {
  if (!Number.isInteger(raw.tracks)) return;
  for (let id = 0; id < Math.min(MOST, raw.tracks); id++) if (!track(id)) store.tracks.set(id, newTrack(id, id ? `Run ${id + 1}` : 'Fresco', raw.of));
}

async function askForHoles(t, upTo) {
  const missing = [];
  for (let i = 0; i < upTo; i++) if (!t.asked.has(i) && !t.frames.some((f) => f.i === i)) missing.push(i);
  if (!missing.length || typeof server?.backfill !== 'function') return;
  missing.forEach((i) => t.asked.add(i));
  const run = store.run;
  try {
    for (const item of (await server.backfill(run, t.id, missing)) ?? []) {
      const raw = typeof item === 'string' ? JSON.parse(item) : item;
      if (raw?.run === run && store.run === run) keep(raw, false);
    }
  } catch { say('Some steps were lost on the way and could not be fetched again.', 'warn'); }
  if (store.run === run) afterData();
}

function onDone(message) {
  // Stop does not know which run is shown: its message names none.
  if ((message.run ? message.run !== store.run : store.done) || recorded() || !store.run) return;
  store.stopped = Boolean(message.stopped); store.done = true;
  for (const t of store.tracks.values()) askForHoles(t, store.stopped ? 0 : t.of);
  view.follow = false;
  const last = fresco().at(-1);
  say(store.stopped && last ? `Stopped at step ${last.i + 1} of ${last.of}. Every step up to there can be replayed.`
    : 'Done. Drag the timeline, or press play, to look at every step again.', 'info');
  redraw();
}

/** A file's frames stand one a line after all else (viz/bundle.py), so the first run plays while the others are on their way. */
async function onBundleUrl(message) {
  const url = new URL(String(message.url), document.baseURI), linked = message.linked !== false;
  if (url.origin !== location.origin) { say('That recorded run is on another server, so it was not loaded.', 'warn'); return; }
  if (recorded() && store.url === url.href && store.linked === linked) return;        // it plays already: the page asked before the server did
  if (store.chosen) return;                                                            // somebody was faster than the page, and has opened a run
  const turn = ++loading;
  say('Loading the recorded run…', 'info');
  try {
    const answer = await fetch(url);
    if (!answer.ok || !answer.body) throw new Error(String(answer.status));
    await readLines(answer.body.getReader(), () => turn === loading, linked, url.href);
  } catch (error) {
    if (turn === loading) say(error instanceof Damaged ? `That recorded run is damaged: ${error.message}.` : 'The recorded run could not be loaded.', 'warn');
  }
}

class Damaged extends Error {}

async function readLines(reader, wanted, linked, url) {
  const decoder = new TextDecoder();
  let rest = '', bundle = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (!wanted()) { reader.cancel(); return; }
    const lines = (rest + decoder.decode(value, { stream: !done })).split('\n');
    rest = done ? '' : lines.pop();
    for (const line of lines) {
      if (!bundle && line.endsWith('"frames":[')) bundle = { ...JSON.parse(`${line}]}`), frames: [] };
      else if (!bundle) { rest = lines.join('\n') + rest; break; }                     // not laid out in lines: read whole, below
      else if (line.startsWith('{')) bundle.frames.push(JSON.parse(line.replace(/,$/, '')));
    }
    if (bundle) takeBundle(bundle, linked, url, done);
    else if (done) takeBundle(JSON.parse(rest), linked, url, true);
    if (done) return;
  }
}

/** `linked` is false where the address asks for another, live run: its step and token wait for that one. */
function onBundle(bundle, linked = true) { loading++; takeBundle(bundle, linked, '', true); store.chosen = true; }

/** A recorded prompt, of which more and more frames are there; it opens as soon as its first run is, `done` when nothing follows. */
function takeBundle(bundle, linked, url, done) {
  if (![bundle.frames, bundle.runs, bundle.nfes].every(Array.isArray) || !bundle.runs.length || !bundle.nfes.length || !Array.isArray(bundle.taus)) throw new Damaged('it holds no recorded runs');
  const all = [...bundle.runs, ...(bundle.references ?? [])], there = bundle.frames.length;
  if (all.some((r) => !r.frames?.length) || (done && all.some((r) => r.frames.some((k) => !bundle.frames[k])))) throw new Damaged('it names steps it does not hold');
  const first = store.bundle !== bundle, base = first ? [] : store.base;
  if (first) {
    readWish();
    const wish = (linked && waiting) || {};
    const tau = nearestLog(bundle.taus, wish.tau > 0 ? wish.tau : bundle.taus[bundle.taus.length >> 1]);
    const nfe = bundle.nfes.includes(wish.nfe) ? wish.nfe : bundle.nfes[bundle.nfes.length >> 1];
    const run = runOf(bundle, tau, nfe);
    if (run.frames.some((k) => k >= there)) return;
    for (let k = 0; k < there; k++) base.push(decode(bundle.frames[k]));
    if (store.run) store.past.add(store.run);
    setLooping(false);
    reset();
    Object.assign(store, { bundle, base, run: `recorded:${bundle.slug}`, url, linked, pending: null });
    view.mode = 'recorded'; view.token = view.cursor = null;
    // From the opening run alone, so that its colours are the same however much of the file is there.
    store.range = steadyRange(run.frames.map((k) => base[k]), bundle.taus, 1.5, 1.5);
    buildNfes();
    openRun(tau, nfe, 0, linked);
    sayRecorded();
    if (wish.step === undefined && !calm.matches) setPlaying(true);
    return;
  }
  if (!recorded()) return;
  const before = base.length;
  for (let k = before; k < there; k++) base.push(decode(bundle.frames[k]));
  if (base.length === before) return;
  let grown = false;
  for (const t of store.tracks.values()) {
    if (complete(t)) continue;
    const more = unroll(t.source, t.id, t.label, t.meta);
    grown ||= more.frames.length > t.frames.length;
    t.frames = more.frames;
    if (t.run && complete(t)) likeness(t);
  }
  if (grown) again();
  const next = store.pending;
  if (next && ready(runOf(bundle, ...next))) { store.pending = null; switchRun(...next); }
}

function sayRecorded() {
  const backend = typeof server?.backfill === 'function';
  say(`Recorded run${store.bundle.taus.length > 1 ? ' – drag tau' : ''}.${backend ? ' Type a prompt and press Run for a live one.' : ''}`, 'info');
}

function decode(raw) { try { return decodeFrame(raw); } catch (error) { throw new Damaged(error.message); } }

function runOf(bundle, tau, nfe) { return bundle.runs.find((r) => r.tau === tau && r.nfe === nfe) ?? bundle.runs[0]; }

/** Whether all steps of a recorded run have arrived. */
function ready(run) { return run.frames.every((k) => store.base[k]); }

/** Gives the recorded, shared steps what they lack: index, label and running totals. */
function unroll(list, id, label, head) {
  const t = newTrack(id, label, list.length, head), missing = list.findIndex((k) => !store.base[k]);
  let flops = 0, ms = 0;
  t.source = list;
  t.frames = (missing < 0 ? list : list.slice(0, missing)).map((k, i) => {
    const f = store.base[k];
    flops += f.flops; ms += f.ms ?? 0;
    return { ...f, run: store.run, track: id, label, i, of: list.length, flops_total: flops, ms_total: ms };
  });
  return t;
}

function unrollRun(run, id, label) {
  const t = unroll(run.frames, id, label, run.meta);
  t.run = run;
  if (complete(t)) likeness(t);
  return t;
}

function likeness(t) { Object.assign(t.frames.at(-1), { psnr: t.run.psnr, ssim: t.run.ssim }); }     // of the finished picture

function openRun(tau, nfe, progress, linked) {
  const run = runOf(store.bundle, tau, nfe);
  store.recorded = run;
  store.tracks.set(0, unrollRun(run, 0, 'Fresco'));
  (store.bundle.references ?? []).forEach((r, k) => { if (!track(k + 1)) store.tracks.set(k + 1, unroll(r.frames, k + 1, r.label, r.meta)); });
  view.tau = run.tau; view.follow = false;
  replan();
  view.pos = progress === null ? Math.min(view.pos, stops.length - 1) : Math.round(progress * (fresco().length - 1));
  afterData(linked);
}

/** Another recorded run at the same relative point: of Fresco's steps, or of the whole timeline once Fresco is done. */
function switchRun(tau, nfe) {
  if (tau === store.recorded?.tau && nfe === store.recorded?.nfe) { view.tau = tau; redraw(); return; }
  if (!ready(runOf(store.bundle, tau, nfe))) { store.pending = [tau, nfe]; say('That run is still on its way; it opens as soon as it is here.', 'info'); return; }
  const s = stop(), total = Math.max(1, stops.length - 1), share = view.pos / total;
  openRun(tau, nfe, s.tail ? 1 : s.a / Math.max(1, fresco().length - 1));
  if (s.tail) { view.pos = Math.round(share * (stops.length - 1)); redraw(); }
}

/** What may stand beside the first run, as {id, label, run}: the live tracks, or all that a recorded prompt holds. */
function candidates() {
  const others = [...store.tracks.values()].filter((t) => t.id > 0 && t.id < FIRST_RECORDED).sort((a, b) => a.id - b.id)
    .map((t) => ({ id: t.id, label: t.label, run: isRun(t) }));
  if (!recorded()) return others;
  const runs = store.bundle.runs.map((r, k) => ({ id: FIRST_RECORDED + k, label: runLabel(r.meta ?? r, store.bundle.nfes.length > 1), run: true }));
  return store.bundle.runs.length > 1 ? [...others, ...runs] : others;
}

function runLabel(m, withNfe) {
  const drive = m.tau ? `tau ${scientific(m.tau)}` : Number.isFinite(m.ratio) ? `ratio ${m.ratio}` : '';
  return ['Fresco', drive, withNfe && `NFE ${m.nfe}`].filter(Boolean).join(', ');
}

/** Makes the track of a bundle's other run, when it is first shown. */
function ensureTrack(id) {
  const run = id >= FIRST_RECORDED ? store.bundle?.runs[id - FIRST_RECORDED] : null;
  if (run && !track(id)) store.tracks.set(id, unrollRun(run, id, runLabel(run.meta ?? run, store.bundle.nfes.length > 1)));
}

/** Which tracks the panes show: what the visitor chose; else every run of a comparison, or the first reference. */
function replan() {
  const known = candidates(), ids = known.map((c) => c.id);
  if (!view.chosen) view.count = Math.min(MOST, known.some((c) => c.run && c.id < FIRST_RECORDED) ? ids.length + 1 : 2);
  const wanted = Math.min(view.count, ids.length + 1) - 1, kept = view.chosen ? view.shown.filter((id) => ids.includes(id)) : [];
  for (const id of ids) if (kept.length < wanted && !kept.includes(id)) kept.push(id);
  view.shown = kept.slice(0, Math.max(0, wanted));
  view.shown.forEach(ensureTrack);
  stops = planStops(lists(), view.align);
}

function setPanes(count) {
  view.chosen = true;
  view.count = Math.min(MOST, Math.max(2, Math.round(Number(count)) || 2));
  again();
}

function setPane(k, id) {
  if (!(k >= 1 && k <= view.shown.length) || !candidates().some((c) => c.id === id)) return;
  const other = view.shown.indexOf(id);
  if (other >= 0) view.shown[other] = view.shown[k - 1];                    // the two change places
  view.shown[k - 1] = id;
  view.chosen = true;
  again();
}

/** Plans the stops again and stays where it was: at the first run's step, or at the end of the tail. */
function again() {
  const step = current()?.i, tail = stop().tail;
  replan();
  if (tail) view.pos = stops.length - 1; else if (step !== undefined) gotoStep(step);
  view.pos = Math.max(0, Math.min(view.pos, stops.length - 1));
  redraw();
}

function afterData(linked = !recorded()) {
  const old = stop(), wasFollowing = view.follow;
  const keepStep = fresco()[old.a]?.i;
  replan();
  if (!store.range) {
    const first = fresco().find((f) => f.measured && f.coarse);
    if (first) store.range = steadyRange([first], [first.tau, meta().tau], 20, 4);
  }
  if (wasFollowing && !recorded()) view.pos = stops.length - 1;
  else if (keepStep !== undefined && !old.tail && fresco()[stop().a]?.i !== keepStep) gotoStep(keepStep);
  view.pos = Math.max(0, Math.min(view.pos, stops.length - 1));
  if (linked) applyWish();
  redraw();
}

/** The state a link asked for, taken over once, as soon as there is enough to show it. The page may set it late. */
function readWish() {
  const asked = window.frescoView;
  if (!asked || typeof asked !== 'object' || asked === store.wish) return;
  store.wish = asked;
  const number = (x) => (x === undefined || x === null || x === '' || !Number.isFinite(Number(x)) ? undefined : Number(x));
  waiting = { step: number(asked.step), tau: number(asked.tau), nfe: number(asked.nfe), token: asked.token };
  if (number(asked.layer)) setLayer(number(asked.layer));
}

function applyWish() {
  readWish();
  if (!waiting || !stops.length) return;
  const wish = waiting;
  if (wish.step !== undefined && !fresco().some((f) => f.i === wish.step) && !complete(track(0))) return;
  waiting = null;
  if (wish.step !== undefined) { gotoStep(wish.step); view.follow = false; }
  if (wish.token) selectToken(String(wish.token).split(',').map(Number));
  if (!recorded() && wish.tau > 0) view.tau = wish.tau;
}

// ------------------------------------------------------------------------------------------------------------- control

function say(text, level) { const line = $('status'); line.textContent = text; line.dataset.level = level; }

function gotoStep(i) {
  const at = fresco().findIndex((f) => f.i >= i);
  goto(stops.findIndex((s) => s.a === (at < 0 ? fresco().length - 1 : at)));
}

function goto(pos) {
  view.pos = Math.max(0, Math.min(stops.length - 1, pos));
  if (!recorded()) view.follow = view.follow && view.pos === stops.length - 1;
  redraw();
}

/** Decodes the pictures of the stops to come, so that playing and stepping do not wait for one. */
function lookAhead() {
  for (let k = view.pos; k < Math.min(stops.length, view.pos + 5); k++) shown().forEach((t, j) => bitmapOf(t?.frames[stops[k].at[j]]?.picture));
}

function userGoto(pos) { setPlaying(false); goto(pos); }

function setPlaying(on) {
  clearTimeout(timer);
  view.playing = Boolean(on) && stops.length > 1;
  if (view.playing) {
    if (view.pos >= stops.length - 1) view.pos = 0;
    view.follow = false;
    timer = setTimeout(() => onBehalf('play', tick), 500 / view.speed);
  }
  redraw();
}

function tick() {
  if (!root.isConnected || !view.playing) return;
  const atEnd = view.pos >= stops.length - 1;
  if (atEnd && !recorded()) { setPlaying(false); view.follow = !store.done; return; }
  goto(atEnd ? 0 : view.pos + 1);
  const last = view.pos >= stops.length - 1;
  // The reference's extra steps pass quickly: nothing new happens in Fresco's pane while it waits.
  timer = setTimeout(() => onBehalf('play', tick), last ? 2600 : (stop().tail ? 110 : 480) / view.speed);
}

function setLayer(n) {
  view.layer = Math.min(5, Math.max(1, Number(n) || 1));
  for (const input of $$('layer')) input.checked = Number(input.value) === view.layer;
  redraw();
}

function setOpacity(x) {
  if (!Number.isFinite(x)) return;
  view.opacity = Math.min(1, Math.max(0, x));
  $('opacity').value = Math.round(100 * view.opacity);
  redraw();
}

/** Frames of the video: of the pictures, or of the token grid where there are more of those (a model may pack four pictures in one). */
function pictureFrames() {
  const f = anyFrame();
  return f ? Math.max(f.shape[0], ...lists().map((list, k) => list[Math.max(0, stop().at[k] ?? 0)]?.picture?.frames ?? 1)) : 1;
}

/** The frame of the token grid under the shown picture. The first stands alone: of 4(n - 1) + 1 pictures each further four share one. */
function gridFrame(shape) { const n = pictureFrames(); return n > 1 ? Math.ceil(view.slice * (shape[0] - 1) / (n - 1) - 1e-9) : 0; }

function setSlice(k) {
  view.slice = Math.min(pictureFrames() - 1, Math.max(0, Math.round(Number(k)) || 0));
  view.hover = null;
  redraw();
}

/** Plays the frames of the shown step over and over, twelve a second. */
function setLooping(on) {
  clearInterval(looper);
  view.looping = Boolean(on) && pictureFrames() > 1;
  if (view.looping) looper = setInterval(() => {
    if (!root.isConnected || pictureFrames() < 2) { setLooping(false); return; }
    onBehalf('play', () => setSlice((view.slice + 1) % pictureFrames()));
  }, 1000 / 12);
  redraw();
}

function setTau(tau, done = true) {
  if (!(tau > 0) || !store.range) return;
  view.tau = Math.min(store.range[1], Math.max(store.range[0], tau));
  view.dragging = !done;
  if (done && recorded()) switchRun(nearestLog(store.bundle.taus, view.tau), store.recorded.nfe);
  else if (done) trigger('select', { tau: view.tau });
  redraw();
}

function setNfe(nfe) { if (recorded()) switchRun(store.recorded.tau, nfe); }

/** The threshold to show: what the visitor set, else what the run used at this step. */
function tauNow() { return view.tau ?? current()?.tau ?? meta().tau ?? null; }

function cellOf(token) {
  const shape = anyFrame()?.shape;
  if (!shape || !token || token.length !== 3 || !token.every((n, k) => Number.isInteger(n) && n >= 0 && n < shape[k])) return -1;
  return (token[0] * shape[1] + token[1]) * shape[2] + token[2];
}

function selectToken(token) {
  view.token = cellOf(token) >= 0 ? token : null;
  view.cursor = view.token;
  const shape = anyFrame()?.shape;
  if (view.token && gridFrame(shape) !== token[0]) {                        // show the frame it lies in
    for (view.slice = 0; gridFrame(shape) < token[0] && view.slice < pictureFrames() - 1;) view.slice++;
  }
  redraw();
}

// ------------------------------------------------------------------------------------------------------------- drawing

// Sizes come from an observer: asking an element for its size between two changes would force a layout each time.
const sizes = new Map();
function widthOf(name, least) { return Math.max(least, sizes.get($(name))?.width ?? 0); }

function write(node, text) { if (node.textContent !== text) node.textContent = text; }

let ink = {};
function readInk() {
  const style = getComputedStyle(root);
  for (const name of ['ink', 'accent', 'mark', 'casing', 'shine', 'low', 'mixed', 'full', 'veil']) ink[name] = style.getPropertyValue(`--fv-${name}`).trim();
  hatches.clear();
}

/** Drawing is put off to the next frame, so that several changes cost one picture. */
function redraw() {
  publish();
  wordsToo = true;
  redrawPictures();
}

/** The same where only pictures changed: one was decoded, or the pointer moved. */
function redrawPictures() { if (!drawn) drawn = requestAnimationFrame(() => { drawn = 0; draw(); }); }

function publish() {
  const f = current();
  const state = { mode: view.mode, frames: fresco().length, 'frames-ref': reference().length, panes: view.shown.length + 1, align: view.align, frame: view.slice, run: store.run, step: f ? f.i : '', layer: view.layer,
    token: view.token ? view.token.join(',') : '', playing: view.playing, tau: tauNow() ?? '', nfe: track(0)?.of ?? '' };
  for (const [name, value] of Object.entries(state)) if (root.getAttribute(`data-${name}`) !== String(value)) root.setAttribute(`data-${name}`, value);
  if (!causes.size) queueMicrotask(announce);
  causes.add(cause);
}

/** Runs an action on somebody's behalf, so that a change can say who made it. */
function onBehalf(who, act) {
  const before = cause;
  cause = who;
  try { return act(); } finally { cause = before; }
}

/** What other scripts may know. See the top of this file. */
function state() {
  const f = current();
  return { run: store.run, mode: view.mode, step: f ? f.i : null, steps: track(0)?.of ?? null, stage: f?.stage ?? null, sigma: f?.sigma ?? null,
    stop: stops.length ? view.pos : null, stops: stops.length, layer: view.layer, token: view.token, tau: tauNow(), nfe: track(0)?.of ?? null,
    align: view.align, frame: view.slice, frames: pictureFrames(), opacity: view.opacity, playing: view.playing, finished: complete(track(0)), panes: shown().map((t, k) => t && { id: t.id, label: title(t), step: t.frames[stop().at[k]]?.i ?? null, steps: t.of }).filter(Boolean) };
}

/** Says what changed since the last time: several changes of one task are one event. */
function announce() {
  const by = ['user', 'api', 'play', 'data'].find((who) => causes.has(who));
  causes.clear();
  const now = state(), before = told ?? {};
  told = now;
  const changed = Object.keys(now).filter((name) => JSON.stringify(now[name]) !== JSON.stringify(before[name]));
  if (changed.length) root.dispatchEvent(new CustomEvent('fresco:change', { bubbles: true, detail: { ...now, changed, by } }));
}

function draw() {
  lookAhead();
  const some = stops.length > 0;
  $('empty').hidden = some; $('body').hidden = !some;
  if (!some) return;
  if (!ink.accent) readInk();
  if (!wordsToo) { drawPanes(); drawToken(); return; }
  wordsToo = false;
  drawHead(); drawPanes(); drawKey(); drawDifferences(); drawTimeline(); drawTau(); drawNumbers(); drawToken(); tell();
}

function drawHead() {
  const m = meta(), chip = $('chip');
  chip.hidden = false; write(chip, recorded() ? 'Recorded' : 'Live');
  const prompt = store.bundle && recorded() ? store.bundle.prompt : m.prompt;
  write($('prompt'), prompt ? `“${prompt}”` : '');
  write($('about'), [m.model, m.seed !== undefined && `seed ${m.seed}`, m.device].filter(Boolean).join(' · '));
  const play = $('play'), label = view.playing ? 'Pause' : 'Play';
  if (play.getAttribute('aria-label') !== label) {
    play.setAttribute('aria-label', label);
    $('play-icon').setAttribute('d', view.playing ? 'M5 3h4v14H5zM11 3h4v14h-4z' : 'M5 3l12 7-12 7z');
  }
  $('live').hidden = recorded() || view.pos === stops.length - 1;
  $('nfes').hidden = !recorded() || store.bundle.nfes.length < 2;
  for (const input of $$('nfe')) input.checked = Number(input.value) === store.recorded?.nfe;
  $('opacity').disabled = view.layer === 1;
  const frames = pictureFrames(), slice = $('slice');
  $('slice-group').hidden = $('loop').hidden = $('frame-keys').hidden = frames < 2;
  if (frames > 1) {
    if (view.slice >= frames) view.slice = frames - 1;
    slice.max = frames - 1; slice.value = view.slice;
    slice.setAttribute('aria-valuetext', `frame ${view.slice + 1} of ${frames}`);
    write($('slice-now'), `${view.slice + 1} of ${frames}`);
    $('loop').setAttribute('aria-pressed', String(view.looping));
    write($('loop'), view.looping ? 'Hold' : 'Loop');
  }
  $('opacity').setAttribute('aria-valuetext', percent(view.opacity));
  drawChoices();
}

/** The choosers: how many panes, what each shows beside the first, and what differences are taken to. */
function drawChoices() {
  const known = candidates(), most = Math.min(MOST, known.length + 1);
  $('count-group').hidden = known.length < 2;
  for (const input of $$('count')) { input.checked = Number(input.value) === view.shown.length + 1; input.parentNode.hidden = Number(input.value) > most; }
  const groups = [['Full resolution', known.filter((c) => !c.run)], [store.bundle && recorded() ? 'Other runs of this prompt' : 'Runs', known.filter((c) => c.run)]].filter(([, list]) => list.length);
  figures().forEach((figure, k) => {
    const select = figure.querySelector('.fv-ref');
    if (!select) return;
    select.hidden = known.length < 2;
    fillSelect(select, groups, view.shown[k - 1]);
  });
  const against = $('against'), tracks = shown().filter(Boolean);
  $('against-group').hidden = view.layer !== 5 || tracks.length < 2;
  if ($('against-group').hidden) return;
  const best = yardstick();
  fillSelect(against, [['', [{ id: '', label: best ? `the finished ${title(best)}` : 'the other pane, now' }]],
    ['As they are at this point', tracks.map((t) => ({ id: `${t.id} now`, label: title(t) }))],
    ['Finished', tracks.filter(complete).map((t) => ({ id: `${t.id} end`, label: title(t) }))]], view.against);
}

function fillSelect(select, groups, value) {
  const name = JSON.stringify(groups);
  if (select.dataset.name !== name) {
    select.dataset.name = name;
    select.replaceChildren(...groups.filter(([, list]) => list.length).flatMap(([title, list]) => {
      const options = list.map((c) => new Option(c.label, c.id));
      if (!title || groups.length < 2) return options;
      const group = document.createElement('optgroup');
      group.label = title; group.append(...options);
      return [group];
    }));
  }
  if (value !== undefined && select.value !== String(value)) select.value = value;
}

// -- panes

const hatches = new Map();
/** Diagonal lines in one colour: a mark that does not rely on hue. */
function hatch(ctx, colour, gap) {
  const name = `${colour} ${gap}`;
  if (!hatches.has(name)) {
    const tile = new OffscreenCanvas(gap, gap), pen = tile.getContext('2d');
    pen.strokeStyle = colour; pen.lineWidth = Math.max(1.2, gap / 5);
    pen.beginPath();
    for (const x of [-gap, 0, gap]) { pen.moveTo(x - 1, gap + 1); pen.lineTo(x + gap + 1, -1); }
    pen.stroke();
    hatches.set(name, tile);
  }
  return ctx.createPattern(hatches.get(name), 'repeat');
}

function figures() { return $('panes').querySelectorAll('.fv-pane'); }

function drawPanes() {
  const list = figures(), wanted = Math.max(2, view.shown.length + 1);
  for (let k = list.length; k < wanted; k++) $('panes').insertBefore(newPane(list[1], k), $('tip'));
  for (let k = list.length; k > wanted; k--) { watcher.unobserve(list[k - 1].querySelector('canvas')); list[k - 1].remove(); }
  $('panes').dataset.count = wanted;
  const s = stop();
  figures().forEach((figure, k) => { const t = k ? track(view.shown[k - 1]) : track(0); drawPane(figure, t?.frames ?? [], s.at[k] ?? -1, t, k); });
}

/** A further pane, made like the second one. */
function newPane(second, k) {
  const figure = second.cloneNode(true);
  const select = figure.querySelector('.fv-ref');
  delete select.dataset.name; select.replaceChildren();
  listenPane(figure, k);
  return figure;
}

/** A track's name in words: with its tau where several runs are compared, or all would be called Fresco. */
function title(t) {
  if (t.id === 0 && recorded() && view.shown.some((id) => id >= FIRST_RECORDED)) return runLabel(store.recorded.meta ?? store.recorded, store.bundle.nfes.length > 1);
  return t.label;
}

function paneWords(t, frames, at) {
  if (!t) return ['Reference', '', 'No reference was run with the same seed, so there is nothing beside it to compare.'];
  if (at < 0) return [title(t), '', frames.length || !t.id ? 'At this cost it is still inside its first step: nothing to show yet.' : 'Waiting for its first step…'];
  const f = frames[at];
  const more = Number.isFinite(f.psnr) ? ` · ${f.psnr.toFixed(1)} dB` : at === f.of - 1 ? ', finished' : '';      // short: a phone has 20 letters
  return [title(t), `step ${f.i + 1} of ${f.of}${more}`, ''];
}

function drawPane(figure, frames, at, t, which) {
  const [name, sub, veil] = paneWords(t, frames, at), parts = partsOf(figure), { canvas } = parts;
  write(parts.name, parts.chooser && !parts.chooser.hidden ? '' : name);
  write(parts.sub, sub);
  if (parts.cover.hidden !== !veil) parts.cover.hidden = !veil;
  write(parts.cover, veil);
  const label = `${name}${sub ? `, ${sub}` : ''}: ${LAYERS[view.layer - 1]} layer. Shift and arrow keys move over the tokens, Enter selects one.`;
  if (canvas.getAttribute('aria-label') !== label) canvas.setAttribute('aria-label', label);
  if (parts.chooser) { const what = `Shown in pane ${which + 1}`; if (parts.chooser.getAttribute('aria-label') !== what) parts.chooser.setAttribute('aria-label', what); }
  const shape = (frames[0] ?? anyFrame()).shape, aspect = `${shape[2]} / ${shape[1]}`;
  if (parts.aspect !== aspect) { parts.aspect = aspect; parts.frame.style.setProperty('--fv-aspect', aspect); }
  const scale = Math.min(2, devicePixelRatio || 1);
  const box = sizes.get(canvas) ?? { width: 1, height: 1 };
  const width = Math.max(1, Math.round(box.width * scale)), height = Math.max(1, Math.round(box.height * scale));
  const frame = veil ? null : frames[at], picture = frame && pictureAt(frames, at, true);
  const target = view.layer === 5 && frame ? differenceTarget(t, which) : null;
  // Most changes concern one pane: the others keep what they show.
  const seen = [width, height, frame && frameId(frame), picture?.id, target?.picture?.id, target?.self, view.layer, view.opacity, view.dragging && view.tau, view.slice, pictureFrames(),
    view.hover, view.cursor, view.token, store.range, ink.casing].join('|');
  if (parts.seen === seen) return;
  parts.seen = seen;
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const ctx = parts.ctx;
  ctx.clearRect(0, 0, width, height);
  if (veil) return;
  const place = placer(frame, width, height, scale);
  // Under a colour scale the sketch is shown in grey, so that the colours mean the scale and nothing else.
  const scaled = (view.layer === 5 && !target?.self) || (view.layer === 2 && frame.measured && store.range);
  if (picture) drawPicture(ctx, picture, scaled ? greyOf(picture) : bitmapOf(picture), width, height);
  if (view.layer === 2) layerVariance(ctx, frame, place);
  else if (view.layer === 3) layerLevels(ctx, frame, place);
  else if (view.layer === 4) layerPromoted(ctx, frame, place);
  else if (view.layer === 5 && picture && target?.picture && !target.self) layerDifference(ctx, place, picture, target.picture);
  drawHighlights(ctx, frame, place);
}

const paneParts = new WeakMap();
/** What a pane is made of, looked up once. */
function partsOf(figure) {
  if (!paneParts.has(figure)) {
    const canvas = figure.querySelector('canvas'), find = (name) => figure.querySelector(`.fv-${name}`);
    paneParts.set(figure, { canvas, ctx: canvas.getContext('2d'), name: find('name'), sub: find('sub'), cover: find('veil'), chooser: find('ref'), frame: find('frame'), aspect: '', seen: '' });
  }
  return paneParts.get(figure);
}

const frameIds = new WeakMap();
let frameCount = 0;
function frameId(frame) { if (!frameIds.has(frame)) frameIds.set(frame, ++frameCount); return frameIds.get(frame); }

/** Pixels of tokens of the shown video frame. */
function placer(frame, width, height, scale) {
  const [, rows, cols] = frame.shape, dx = width / cols, dy = height / rows, size = rows * cols, from = gridFrame(frame.shape) * size;
  const rect = (token) => { const t = tokenRect(frame, token); return [t.col * dx, t.row * dy, t.width * dx, t.height * dy]; };
  const shown = (token) => frame.home[token] >= from && frame.home[token] < from + size;
  const path = (mask) => {
    const p = new Path2D();
    for (let t = 0; t < frame.count; t++) if (mask(t) && shown(t)) p.rect(...rect(t));
    return p;
  };
  return { rect, path, shown, from, size, width, height, scale };
}

/** Draws the shown frame of a picture, in colour or in grey. `k` is another frame. */
function drawPicture(ctx, picture, source, width, height, k = view.slice) {
  ctx.imageSmoothingEnabled = true; ctx.imageSmoothingQuality = 'high';
  ctx.drawImage(source, ...sheetRect(picture, k), 0, 0, width, height);
}

const cellCanvas = new OffscreenCanvas(1, 1);
function layerVariance(ctx, frame, place) {
  if (!store.range || !frame.measured) { if (view.dragging) paintWould(ctx, frame, place); return; }
  const [, rows, cols] = frame.shape;
  if (cellCanvas.width !== cols || cellCanvas.height !== rows) { cellCanvas.width = cols; cellCanvas.height = rows; }
  const pen = cellCanvas.getContext('2d'), image = pen.createImageData(cols, rows);
  const shade = new Int16Array(frame.count);
  for (let t = 0; t < frame.count; t++) shade[t] = frame.q[t] ? Math.round(255 * toUnit(dequantise(frame.q[t], frame.vmin, frame.vmax), store.range)) : -1;
  for (let k = 0; k < place.size; k++) {
    const s = shade[frame.index[place.from + k]];
    if (s < 0) continue;
    for (let c = 0; c < 3; c++) image.data[4 * k + c] = LUT[3 * s + c];
    image.data[4 * k + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  ctx.save();
  ctx.globalAlpha = view.opacity; ctx.imageSmoothingEnabled = false;
  ctx.drawImage(cellCanvas, 0, 0, place.width, place.height);
  ctx.restore();
  if (view.dragging) paintWould(ctx, frame, place);
  else outlineMask(ctx, place, (t) => frame.selected[t], 1.4);
}

function outlineMask(ctx, place, mask, width) {
  const path = place.path(mask);
  ctx.strokeStyle = ink.casing; ctx.lineWidth = (width + 1.4) * place.scale; ctx.stroke(path);
  ctx.strokeStyle = ink.mark; ctx.lineWidth = width * place.scale; ctx.stroke(path);
}

/** Fill, hatch and outline, so that the mark does not rely on colour. */
function paintMask(ctx, place, mask) {
  const path = place.path(mask);
  ctx.save();
  ctx.globalAlpha = 0.55 * view.opacity + 0.1; ctx.fillStyle = ink.mark; ctx.fill(path);
  ctx.globalAlpha = 0.9; ctx.fillStyle = hatch(ctx, ink.shine, Math.round(7 * place.scale)); ctx.fill(path);
  ctx.restore();
  outlineMask(ctx, place, mask, 1.6);
}

function paintWould(ctx, frame, place) {
  if (frame.track !== 0 || !tauNow()) return;
  const { mask } = wouldPromote(frame, tauNow());
  paintMask(ctx, place, (t) => mask[t]);
}

function layerLevels(ctx, frame, place) {
  const fine = place.path((t) => frame.level[frame.home[t]] === frame.levels);
  const cell = place.width / frame.shape[2] / place.scale;
  ctx.save();
  for (let l = 0; l < frame.levels; l++) {
    const path = place.path((t) => frame.level[frame.home[t]] === l);
    ctx.globalAlpha = view.opacity * 0.62 * (1 - l / (frame.levels + 1)); ctx.fillStyle = ink.low; ctx.fill(path);
    ctx.globalAlpha = view.opacity;
    ctx.strokeStyle = ink.casing; ctx.lineWidth = 2.4 * place.scale; ctx.stroke(path);
    ctx.strokeStyle = ink.shine; ctx.lineWidth = 1.2 * place.scale; ctx.stroke(path);
  }
  ctx.globalAlpha = view.opacity * (cell < 8 ? 0.35 : 0.6); ctx.strokeStyle = ink.shine; ctx.lineWidth = 0.7 * place.scale; ctx.stroke(fine);
  ctx.restore();
}

function layerPromoted(ctx, frame, place) {
  ctx.save();
  ctx.globalAlpha = 0.45 * view.opacity; ctx.fillStyle = ink.casing; ctx.fillRect(0, 0, place.width, place.height);
  ctx.restore();
  if (view.dragging) paintWould(ctx, frame, place);
  else if (frame.promoted) paintMask(ctx, place, (t) => frame.selected[t]);
}

/** The finished reference with the most steps: what both panes are measured against, whichever reference is shown. */
function yardstick() {
  return [...store.tracks.values()].filter((t) => t.id > 0 && complete(t)).reduce((best, t) => (best && best.of >= t.of ? best : t), null);
}

/**
 * What a pane is compared with: the chosen track, now or at its end. Else the reference's final picture; until that exists, what the other
 * pane (for the first: the next one) shows now. `self` where that is the very picture the pane shows.
 */
function differenceTarget(t, which) {
  const [id, when] = view.against.split(' '), chosen = view.against ? track(Number(id)) : null, best = yardstick();
  if (chosen) {
    const place = shown().indexOf(chosen), at = when === 'end' ? chosen.frames.length - 1 : stop().at[place] ?? -1;
    return { picture: at >= 0 ? pictureAt(chosen.frames, at, true) : null, self: when === 'now' && chosen === t };
  }
  if (best) return { picture: pictureAt(best.frames, best.frames.length - 1, true), self: false };
  const other = which ? 0 : 1, frames = lists()[other] ?? [], at = stop().at[other] ?? -1;
  return { picture: at >= 0 ? pictureAt(frames, at, true) : null, self: false };
}

const differences = new Map();
const FULL_SCALE = 0.4;                                                   // mean channel difference drawn in the brightest colour
function layerDifference(ctx, place, mine, other) {
  const name = `${mine.id} ${other.id} ${mine.frames > 1 ? view.slice : 0}`;
  if (!differences.has(name)) {
    if (differences.size > 80) differences.delete(differences.keys().next().value);
    differences.set(name, difference(mine, other, view.slice));
  }
  ctx.save(); ctx.globalAlpha = view.opacity; ctx.imageSmoothingEnabled = true;
  ctx.drawImage(differences.get(name), 0, 0, place.width, place.height);
  ctx.restore();
}

function difference(a, b, k) {
  const [one, two] = [a, b].map((picture) => sheetRect(picture, k));
  const side = Math.max(one[2], two[2], one[3], two[3]), shrink = Math.min(1, 256 / side);
  const width = Math.round(Math.max(one[2], two[2]) * shrink), height = Math.round(Math.max(one[3], two[3]) * shrink);
  const [mine, other] = [[a, one], [b, two]].map(([picture, from]) => {
    const pen = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    pen.drawImage(bitmapOf(picture), ...from, 0, 0, width, height);
    return { pen, image: pen.getImageData(0, 0, width, height) };
  });
  const p = mine.image.data, q = other.image.data;
  for (let k = 0; k < p.length; k += 4) {
    const d = (Math.abs(p[k] - q[k]) + Math.abs(p[k + 1] - q[k + 1]) + Math.abs(p[k + 2] - q[k + 2])) / 765;
    const s = 3 * Math.min(255, Math.round(255 * d / FULL_SCALE));
    p[k] = LUT[s]; p[k + 1] = LUT[s + 1]; p[k + 2] = LUT[s + 2]; p[k + 3] = 255;
  }
  mine.pen.putImageData(mine.image, 0, 0);
  return mine.pen.canvas;
}

function drawHighlights(ctx, frame, place) {
  const box = (token, width, dash) => {
    const cell = cellOf(token);
    if (cell < 0 || !place.shown(frame.index[cell])) return;
    const [x, y, w, h] = place.rect(frame.index[cell]), s = place.scale;
    for (const [colour, line] of [[ink.casing, width + 2.5], [ink.shine, width]]) {
      ctx.strokeStyle = colour; ctx.lineWidth = line * s; ctx.setLineDash(dash && colour === ink.shine ? [5 * s, 4 * s] : []);
      ctx.strokeRect(x, y, w, h);
    }
    ctx.setLineDash([]);
  };
  if (view.hover) box(view.hover, 1.5, false);
  if (view.cursor && String(view.cursor) !== String(view.token)) box(view.cursor, 2, true);
  if (view.token) box(view.token, 3, false);
}

// -- legend and sentences

function drawKey() {
  const key = $('key'), byLayer = { 2: 'v', 5: 'd' }[view.layer];
  key.style.visibility = byLayer && (view.layer === 5 || store.range) ? 'visible' : 'hidden';
  write($('hint-layer'), layerSentence());
  if (!byLayer) return;
  const lut = $('key-lut');
  if (!lut.dataset.done) {
    const pen = lut.getContext('2d'), image = pen.createImageData(256, 1);
    for (let k = 0; k < 256; k++) { for (let c = 0; c < 3; c++) image.data[4 * k + c] = LUT[3 * k + c]; image.data[4 * k + 3] = 255; }
    pen.putImageData(image, 0, 0); lut.dataset.done = 'yes';
  }
  const tau = tauNow(), mark = $('key-tau');
  mark.hidden = view.layer !== 2 || !tau;
  if (view.layer === 2 && store.range) {
    if (tau) mark.style.left = `${100 * toUnit(tau, store.range)}%`;
    setKey(`${store.range} v`, 'Variance', 'settled', 'moving', decades(store.range).map((v) => [toUnit(v, store.range), power(v)]));
  } else if (view.layer === 5) {
    setKey('d', 'Difference', 'same', 'far', [0, 0.5, 1].map((x) => [x, `${x === 1 ? '≥ ' : ''}${Math.round(x * FULL_SCALE * 100)} %`]));
  }
}

function setKey(name, title, low, high, ticks) {
  if ($('key').dataset.name === name) return;
  $('key').dataset.name = name;
  write($('key-name'), title); write($('key-low'), low); write($('key-high'), high);
  $('key-ticks').replaceChildren(...ticks.map(([x, text]) => {
    const tick = document.createElement('span');
    tick.style.left = `${100 * x}%`; tick.textContent = text;
    return tick;
  }));
}

function decades(range) {
  const out = [];
  for (let e = Math.ceil(Math.log10(range[0]) - 1e-9); e <= Math.log10(range[1]) + 1e-9; e++) out.push(10 ** e);
  return out;
}
function power(v) { return `10${String(Math.round(Math.log10(v))).replace(/./g, (d) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d] ?? '⁻')}`; }

function layerSentence() {
  const f = current();
  if (!f) return '';
  if (view.dragging && (view.layer === 2 || view.layer === 4)) return 'Hatched: the tokens this tau would promote after this step.';
  const sentences = {
    1: {
      low: `Only ${whole(f.count)} coarse tokens are computed, yet the composition is already decided. Look for what stays vague.`,
      mixed: 'Parts of the picture are already computed at full resolution, the rest is still a sketch. Look for edges that sharpen first.',
      full: 'All tokens are fine now. Look how little still changes from step to step.' },
    2: {
      low: 'Dark = this token’s clean estimate has stopped moving; those are the ones tau lets through.',
      mixed: 'Dark = settled. Outlined tokens are promoted after this step; bright ones are still moving and stay coarse.',
      full: 'All tokens are fine, so tau no longer decides anything; the colours only show what still moves.' },
    3: {
      low: 'Each tinted square is one coarse token, standing for a block of fine cells. All of them are coarse now.',
      mixed: 'Tinted squares are still coarse; small squares have been promoted. Watch in which order regions split.',
      full: 'Only fine cells are left: from here on each step costs as much as in the full-resolution run.' },
    5: differenceSentence() };
  if (view.layer === 2 && !f.measured) return 'No variance yet: it takes at least two clean estimates to see whether a token moves.';
  if (view.layer === 4) {
    if (f.promoted) return `Hatched: ${plural(f.promoted, 'token')} promoted after this step${f.final ? ', because the mixed stage ends here' : ''}.`;
    if (f.stage === 'full') return 'All tokens are fine: there is nothing left to promote.';
    return f.check ? 'The sampler looked after this step, but no token was below tau.' : 'The sampler did not look for tokens to promote after this step.';
  }
  const row = sentences[view.layer];
  return typeof row === 'string' ? row : row[STAGES[f.stage] ?? 'mixed'];
}

function differenceSentence() {
  const [id, when] = view.against.split(' '), chosen = view.against ? track(Number(id)) : null, best = yardstick();
  if (chosen) return `Compared with ${when === 'end' ? 'the final picture of' : 'what is now shown of'} “${title(chosen)}”: bright = the two differ there.`;
  if (best) return `Compared with the final picture of the ${best.of}-step reference: bright = still far from it. Which side is darker at this point?`;
  return view.shown.length ? `Compared with what the ${view.shown.length > 1 ? 'first' : 'other'} pane shows now: bright = the two differ there.`
    : 'There is no reference run with the same seed, so there is no difference to show.';
}

// -- what differs

const SETTING = { nfe: 'NFE', stages: 'low + mixed + full', frame: 'position frame', checks: 'checks', detail_gain: 'detail gain' };
/** A table of the settings in which the shown runs differ; only where more is compared than a run and its reference. */
function drawDifferences() {
  const box = $('diffs'), tracks = shown().filter((t) => t?.meta);
  box.hidden = !comparing() || tracks.length < 2;
  if (box.hidden) return;
  const name = tracks.map((t) => `${store.run} ${t.id} ${title(t)} ${JSON.stringify(t.meta)}`).join();
  if (box.dataset.name === name) return;
  box.dataset.name = name;
  const rows = settingsThatDiffer(tracks.map((t) => (isRun(t) ? t.meta : { nfe: t.meta.nfe, stages: t.meta.stages, prompt: t.meta.prompt, seed: t.meta.seed, model: t.meta.model })),
    ['baselines', 'recorded', 'provenance', 'device', 'image']).filter(([, values]) => new Set(tracks.map((t, k) => (isRun(t) || values[k] !== null ? String(values[k]) : null)).filter((v) => v !== null)).size > 1);
  const table = document.createElement('table'), cell = (tag, text, scope) => { const c = document.createElement(tag); c.textContent = text; if (scope) c.scope = scope; return c; };
  const head = table.createTHead().insertRow(), body = table.createTBody();
  head.append(cell('th', 'Setting', 'col'), ...tracks.map((t) => cell('th', title(t), 'col')));
  for (const [setting, values] of rows) body.insertRow().append(cell('th', SETTING[setting] ?? setting, 'row'), ...values.map((v) => cell('td', v === null ? '–' : String(v))));
  $('diffs-table').replaceChildren(rows.length ? table : 'Nothing: they were run with the same settings.');
}

// -- timeline

const LINE = { top: 32, bar: 16, gap: 34, marks: 10 };
let lineScale = null, lineName = '', lineParts = null;
function costDomain() {
  const b = meta().baselines ?? {}, tracks = shown().filter(Boolean);
  const spent = Math.max(...tracks.map((t) => t.frames.at(-1)?.flops_total ?? 0));
  // What is still to come is known for a reference, whose steps all cost the same; for a run that has none it is guessed.
  const ahead = Math.max(0, ...tracks.slice(1).map((t) => (t.frames.length && !isRun(t) ? t.frames[0].flops * t.of : 0)));
  const guess = tracks.length > 1 && ahead ? 0 : tracks.every(complete) ? 0 : b.same_nfe ?? 0;
  return Math.max(spent, ahead, guess) || 1;
}

function drawTimeline() {
  const line = $('line'), svg = $('line-svg'), width = widthOf('line', 200), s = stop();
  const tracks = shown(), byCost = view.align === 'cost';
  const domain = byCost ? costDomain() : Math.max(...tracks.map((t) => t?.of ?? 0));
  const x = (v) => 1 + (width - 2) * Math.min(1, v / domain);
  lineScale = { width, domain };
  const name = [width, domain, view.align, store.run, store.recorded?.tau, store.recorded?.nfe, view.shown, ...tracks.map((t) => t?.frames.length)].join();
  if (name !== lineName) {
    lineName = name;
    svg.innerHTML = timelineMarkup(width, domain, x, tracks, byCost); svg.setAttribute('height', lineHeight(tracks.filter(Boolean).length));
    lineParts = { future: svg.querySelector('.fv-future'), cursor: svg.querySelector('.fv-cursor'), cur: svg.querySelector('.fv-cur') };
    lineParts.cur.setAttribute('y2', lineHeight(tracks.filter(Boolean).length) - 18);
    line.setAttribute('aria-valuemax', stops.length - 1);
  }
  const at = x(byCost ? s.cost : Math.max(...s.at, 0) + 1);
  lineParts.future.setAttribute('x', at); lineParts.future.setAttribute('width', Math.max(0, width - at));
  lineParts.cursor.setAttribute('transform', `translate(${at.toFixed(1)} 0)`);
  line.setAttribute('aria-valuenow', view.pos);
  const words = nowText();
  if (words !== $('now').textContent) { line.setAttribute('aria-valuetext', words); write($('now'), words); }
  const bars = tracks.length > 2 ? 'all bars' : 'both bars';
  write($('line-note'), byCost ? `${bars} on one scale of FLOPs` : `${bars} on one scale of steps`);
}

function lineHeight(rows) { return LINE.top + LINE.bar + (rows > 1 ? (rows - 1) * (LINE.gap + LINE.bar) : LINE.marks) + 20; }

function timelineMarkup(width, domain, x, tracks, byCost) {
  const parts = [], labels = [], full = meta().baselines?.full50;
  const there = tracks.filter(Boolean);
  there.forEach((t, row) => {
    const y = LINE.top + row * (LINE.bar + LINE.gap), spent = t.frames.at(-1)?.flops_total ?? 0;
    const share = full ? `, ${percent(spent / full)} of the cost of 50 full steps${complete(t) ? '' : ' so far'}` : '';
    const label = title(t), words = `${escapeText(label)}${label.includes('step') || label.includes('NFE') ? '' : `, ${t.of} steps`}`;
    labels.push(`<text class="fv-t-halo" x="1" y="${y - 5}"><tspan class="fv-t-ink">${words}</tspan>${width > 420 ? share : ''}</text>`);
    parts.push(`<rect class="fv-rail" x="0.5" y="${y}" width="${width - 1}" height="${LINE.bar}" rx="3"/>`);
    const bars = { low: '', mixed: '', full: '' };
    let marks = '';
    for (const f of t.frames) {
      const x0 = x(byCost ? f.flops_total - f.flops : f.i), x1 = x(byCost ? f.flops_total : f.i + 1), w = x1 - x0;
      bars[STAGES[f.stage] ?? 'full'] += `M${x0.toFixed(2)} ${y}h${Math.max(0.6, w - (w > 3 ? 1 : 0)).toFixed(2)}v${LINE.bar}H${x0.toFixed(2)}z`;
      if (isRun(t) && f.promoted) marks += `M${x1.toFixed(1)} ${y + LINE.bar + 1}l4.5 8h-9z`;
    }
    for (const [stage, d] of Object.entries(bars)) if (d) parts.push(`<path class="fv-s-${stage}" d="${d}"/>`);
    if (marks) parts.push(`<path class="fv-tri" d="${marks}"/>`);
  });
  const bottom = lineHeight(there.length) - 18;
  const ticks = byCost ? costTicks(domain, full) : stepTicks(domain);
  for (const [v, text] of ticks) {
    const anchor = x(v) > width - 30 ? 'end' : x(v) < 20 ? 'start' : 'middle';
    parts.push(`<path class="fv-axis" d="M${x(v).toFixed(1)} ${bottom}v4"/><text x="${x(v).toFixed(1)}" y="${bottom + 15}" text-anchor="${anchor}">${text}</text>`);
  }
  parts.push(`<rect class="fv-future" x="0" y="${LINE.top - 1}" width="0" height="${bottom - LINE.top + 1}"/>`);
  parts.push('<g class="fv-cursor"><line class="fv-cur" x1="0" x2="0" y1="10" y2="0"/><circle class="fv-knob" cx="0" cy="8" r="6.5"/></g>');
  return parts.concat(labels).join('');
}

function costTicks(domain, full) {
  if (!full) return [0, 0.25, 0.5, 0.75, 1].map((p) => [p * domain, p ? unit(p * domain, 'FLOP') : '0']);
  const every = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1].find((p) => domain / full / p <= 5.5) ?? 1;
  return Array.from({ length: Math.floor(domain / full / every + 1e-6) + 1 }, (_, k) => [k * every * full, `${Math.round(100 * k * every)} %`]);
}
function stepTicks(n) {
  const every = n > 30 ? 10 : n > 12 ? 5 : 2;
  return Array.from({ length: Math.floor(n / every) }, (_, k) => [(k + 1) * every, String((k + 1) * every)]);
}

function escapeText(text) { return text.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' }[c])); }

function nowText() {
  const s = stop(), a = fresco()[s.a], b = reference()[s.b], cost = view.align === 'cost';
  if (view.shown.length > 1 || isRun(track(view.shown[0]))) {
    const each = shown().map((t, k) => { const f = t?.frames[s.at[k]]; return t && `${title(t)}: ${f ? `${f.i + 1} of ${f.of}` : 'not started'}`; }).filter(Boolean);
    return `${cost ? 'At the same cost' : 'At the same step'} – ${each.join('; ')}`;
  }
  const left = a ? `Fresco step ${a.i + 1} of ${a.of}${s.tail ? ' (finished)' : ''}` : 'Fresco not started';
  if (!track(view.shown[0])) return left;
  const right = b ? `reference step ${b.i + 1} of ${b.of}` : 'reference inside its first step';
  return cost ? `${left}, same cost: ${right}` : `${left}, ${right}`;
}

// -- tau

const HIST = { height: 150, top: 20, base: 118, bins: 32 };
function drawTau() {
  const f = current(), svg = $('hist-svg'), width = widthOf('hist', 160), range = store.range, tau = tauNow();
  svg.setAttribute('height', HIST.height);
  const handle = $('tau');
  handle.hidden = !range || !tau;
  const usable = f && range && f.measured && f.coarse;
  const would = usable && tau ? wouldPromote(f, tau).count : 0;
  write($('tau-value'), tau ? `tau ${scientific(tau)}` : '');
  write($('tau-text'), !f ? '' : usable && tau ? `would promote ${whole(would)} of ${plural(f.coarse, 'coarse token')} (${Math.round(100 * would / f.coarse)} %)`
    : !f.coarse ? 'No coarse tokens are left at this step.' : 'No variance is defined at this step yet.');
  write($('hint-tau'), tauSentence(f, usable, would));
  const name = [f && frameId(f), usable, width, range, tau, store.recorded?.tau, store.run].join('|');
  if (svg.dataset.name !== name) { svg.dataset.name = name; svg.innerHTML = range ? histMarkup(f, usable, width, range, tau) : ''; }
  if (handle.hidden) return;
  handle.style.left = `${histX(toUnit(tau, range), width)}px`;
  const set = (name, value) => handle.setAttribute(`aria-${name}`, value);
  set('valuemin', Math.log10(range[0]).toFixed(2)); set('valuemax', Math.log10(range[1]).toFixed(2)); set('valuenow', Math.log10(tau).toFixed(3));
  set('valuetext', `tau ${scientific(tau)}${usable ? `, would promote ${would} of ${f.coarse} coarse tokens` : ''}`);
}

function histX(x, width) { return 12 + x * (width - 24); }

function tauSentence(f, usable, would) {
  if (!f) return '';
  if (recorded() && store.bundle.taus.length < 2 && (view.dragging || !would) && usable) return 'One run was recorded, with its own threshold: drag the line to see what others would take.';
  if (recorded() && view.dragging) return `Let go: the run recorded with tau ${scientific(nearestLog(store.bundle.taus, view.tau))} takes over.`;
  if (!recorded() && view.tau && !view.dragging && typeof server?.backfill === 'function') return `Tau is set to ${scientific(view.tau)}: press Run to see what it makes of the picture.`;
  if (!usable) return f.coarse ? 'Step on: the histogram fills once there are two estimates to compare.' : 'Step back to the mixed stage to see the tokens tau decides about.';
  if (f.promoted && !view.dragging) return `${f.check || f.final ? 'The sampler looked here and promoted' : 'Promoted here:'} ${whole(f.promoted)}${f.final ? ' (all that were left)' : ''}. Left of the line = settled.`;
  if (!would) return 'No token is left of the line: drag tau to the right until the first ones fall in.';
  return 'Drag the line: everything left of it has settled enough to be computed at full resolution.';
}

function histMarkup(f, usable, width, range, tau) {
  const parts = [`<defs><pattern id="${uid}h" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="fv-hatch-line" d="M0 0v6"/></pattern>`];
  const cut = tau ? histX(toUnit(tau, range), width) : 0;
  parts.push(`<clipPath id="${uid}c"><rect x="0" y="0" width="${cut}" height="${HIST.height}"/></clipPath></defs>`);
  if (usable) {
    const counts = histogram(f, range, HIST.bins), most = Math.max(...counts), w = (width - 24) / HIST.bins;
    const bars = counts.map((n, k) => n ? `M${(histX(k / HIST.bins, width) + 0.5).toFixed(1)} ${HIST.base}v${(-(HIST.base - HIST.top - 8) * n / most).toFixed(1)}h${(w - 1).toFixed(1)}V${HIST.base}z` : '').join('');
    parts.push(`<path class="fv-bar" d="${bars}"/><g clip-path="url(#${uid}c)"><path class="fv-bar-in" d="${bars}"/><path fill="url(#${uid}h)" d="${bars}"/></g>`);
    parts.push(`<text x="${cut > width / 2 ? 12 : width - 12}" y="12" text-anchor="${cut > width / 2 ? 'start' : 'end'}">tallest bar: ${plural(most, 'token')}</text>`);
  }
  parts.push(`<path class="fv-axis" d="M12 ${HIST.base}h${width - 24}"/>`);
  for (const v of decades(range)) {
    const x = histX(toUnit(v, range), width);
    parts.push(`<path class="fv-axis" d="M${x.toFixed(1)} ${HIST.base}v5"/><text x="${x.toFixed(1)}" y="${HIST.base + 18}" text-anchor="middle">${power(v)}</text>`);
  }
  if (recorded()) {
    const near = tau && nearestLog(store.bundle.taus, tau);
    for (const t of store.bundle.taus) parts.push(`<circle class="fv-snap${t === near ? ' fv-snap-on' : ''}" cx="${histX(toUnit(t, range), width).toFixed(1)}" cy="${HIST.base}" r="4"/>`);
  }
  parts.push(`<text x="${width / 2}" y="${HIST.base + 32}" text-anchor="middle">variance of a coarse token’s clean estimate</text>`);
  return parts.join('');
}

// -- numbers

function drawNumbers() {
  const f = current(), t = track(0), s = stop();
  if (!f) { write($('share'), '–'); write($('share-text'), 'Fresco has not started'); return; }
  const base = meta().baselines ?? {}, b = reference()[s.b];
  write($('share'), base.full50 ? percent(f.flops_total / base.full50) : unit(f.flops_total, 'FLOP'));
  write($('share-text'), `${base.full50 ? 'of the cost of 50 full steps' : 'spent'}${s.a === f.of - 1 ? ', all steps done' : ' spent so far'}`);
  const total = complete(t) ? t.frames.at(-1).flops_total : null;
  const times = (cost) => (total ? `${short(cost / total)}× fewer FLOPs` : 'known at the end');
  const gains = [];
  if (base.full50) gains.push(['Against 50 full steps', times(base.full50)]);
  if (base.same_nfe) gains.push([`Against ${f.of} full steps`, times(base.same_nfe)]);
  if (total && base.same_flops?.steps) gains.push(['The same FLOPs buy', plural(base.same_flops.steps, 'full step')]);
  else if (base.full50) gains.push(['So far it has spent', `${short(f.flops_total / (base.full50 / 50))} full steps`]);
  setList($('gains'), gains, () => pair('li', 'span', 'b'));
  const quality = (x) => [Number.isFinite(x?.psnr) && `${x.psnr.toFixed(1)} dB`, Number.isFinite(x?.ssim) && x.ssim.toFixed(3)].filter(Boolean).join(' / ') || '–';
  setList($('nums'), [
    ['Step', `${f.i + 1} of ${f.of}`], ['Stage', f.stage],
    ['Sigma', Number.isFinite(f.sigma_next) ? `${f.sigma.toFixed(2)} → ${f.sigma_next.toFixed(2)}` : String(f.sigma)],
    ['Tokens in this call', `${whole(f.count)} of ${whole(f.cells)}`],
    ['This step', unit(f.flops, 'FLOP')], ['Spent so far', unit(f.flops_total, 'FLOP')],
    ['NFE', String(f.of)], ['Time so far', Number.isFinite(f.ms_total) ? `${short(f.ms_total / 1000)} s` : '–'],
    ['Fresco PSNR / SSIM', quality(f)], ['Reference PSNR / SSIM', b ? quality(b) : '–'],
    ...(Number.isFinite(f.gap) ? [['Noise gap', f.gap.toFixed(2)]] : []),
    ...(Number.isFinite(f.preview_ms) ? [['Preview, apart', `${f.preview_ms.toFixed(1)} ms`]] : []),
  ], () => pair('div', 'dt', 'dd'));
  drawCosts(base);
  write($('hint-cost'), f.stage === 'low' ? 'Coarse steps are nearly free: watch how slowly the share grows.'
    : f.stage === 'mixed' ? 'Each promotion adds tokens, so each step costs a little more than the last.' : 'Full steps are where the money goes: most of the share is spent here.');
}

/** What each of several runs has cost by now, and in the end; one row a run. */
function drawCosts(base) {
  const box = $('costs');
  box.hidden = !comparing();
  if (box.hidden) return;
  const s = stop(), full = base.full50, most = Math.max(...shown().map((t) => t?.frames.at(-1)?.flops_total ?? 0), 1);
  setList(box, shown().map((t, k) => [t, k]).filter(([t]) => t).map(([t, k]) => {
    const now = t.frames[s.at[k]]?.flops_total ?? 0, end = complete(t) ? t.frames.at(-1).flops_total : null;
    const share = full ? percent(now / full) : unit(now, 'FLOP');
    return [title(t), `${share}${end ? ` of ${full ? percent(end / full) : unit(end, 'FLOP')}` : ''}`, now / most];
  }), () => { const row = pair('li', 'span', 'b'), bar = document.createElement('i'); row.insertBefore(bar, row.lastChild); return row; });
}

/** Rows of a name and a value: built once, then only the texts change. */
function setList(node, rows, make) {
  if (node.children.length !== rows.length) node.replaceChildren(...rows.map(make));
  rows.forEach(([name, value, share], k) => {
    const row = node.children[k];
    if (name) write(row.firstChild, name);
    write(row.lastChild, value);
    if (share !== undefined) row.style.setProperty('--fv-part', share.toFixed(3));
  });
}

function pair(outer, first, second) {
  const node = document.createElement(outer);
  node.append(document.createElement(first), document.createElement(second));
  return node;
}

// -- one token over time

const CHART = { height: 240, left: 44, right: 12, top: 16, base: 178, strip: 202 };
function drawToken() {
  const cell = cellOf(view.token), frames = fresco();
  $('token-body').hidden = cell < 0 || !frames.length;
  if (cell < 0 || !frames.length) {
    write($('token-title'), 'One token over time');
    write($('hint-token'), 'Click a token in either picture: its variance against tau, the step at which it was promoted and its patch over time appear here.');
    return;
  }
  const story = lineage(frames, cell), promoted = story.filter((p) => p.promoted);
  write($('token-title'), `Token at row ${view.token[1]}, column ${view.token[2]}${frames[0].shape[0] > 1 ? `, frame ${view.token[0]}` : ''}`);
  write($('hint-token'), storySentence(story, promoted, frames[0].levels));
  const name = [cell, store.run, store.recorded?.tau, store.recorded?.nfe, widthOf('hist-line', 240), store.range, view.tau, current()?.i, view.align, view.shown, ...lists().map((list) => list.length)].join('|');
  if ($('hist-line').dataset.name !== name) { $('hist-line').dataset.name = name; $('hist-line').innerHTML = chartMarkup(story, cell); }
  $('hist-line').setAttribute('height', CHART.height);
  drawLines();
  drawPatches(story, cell);
}

/** Names the curves beside the run's own. */
function drawLines() {
  const others = shown().map((t, k) => [t, k - 1]).filter(([t, k]) => t?.frames.length && k >= 0 && (isRun(t) || view.align === 'step'));
  $('lines').hidden = !others.length || !comparing();
  if (!$('lines').hidden) setList($('lines'), [['', title(track(0))], ...others.map(([t]) => ['', title(t)])], () => {
    const row = pair('li', 'i', 'span');
    row.firstChild.innerHTML = '<svg width="30" height="8" aria-hidden="true"><path class="fv-v" d="M0 4h30"/></svg>';
    return row;
  });
  if (!$('lines').hidden) others.forEach(([, k], n) => $('lines').children[n + 1].querySelector('path').setAttribute('class', `fv-v-ref fv-v-ref-${k}`));
}

function storySentence(story, promoted, levels) {
  const last = promoted.at(-1);
  if (!last) return story.at(-1).level === levels ? 'This cell was fine from the start.' : 'Not promoted yet: its variance has not dipped under tau at a step where the sampler looked.';
  if (last.forced && !(last.v <= last.tau)) return `It never settled: promoted after step ${last.i + 1} only because the mixed stage ended there. Its variance was still above tau.`;
  return `Promoted after step ${promoted.map((p) => p.i + 1).join(' and ')}: its variance lies under the dashed tau line there. The patch sharpens afterwards.`;
}

function chartX(i, width) { const of = track(0).of; return CHART.left + (of > 1 ? i / (of - 1) : 0) * (width - CHART.left - CHART.right); }

function chartMarkup(story, cell) {
  const width = widthOf('hist-line', 240), range = store.range, parts = [], span = CHART.base - CHART.top;
  const x = (i) => chartX(i, width).toFixed(1), y = (v) => (CHART.base - toUnit(v, range) * span).toFixed(1);
  const line = (points, value) => points.reduce((d, p) => { const v = value(p); return { d: v > 0 ? `${d.d}${d.on ? 'L' : 'M'}${x(p.i)} ${y(v)}` : d.d, on: v > 0 }; }, { d: '', on: false }).d;
  if (range) {
    for (const v of decades(range)) parts.push(`<path class="fv-axis" d="M${CHART.left} ${y(v)}H${width - CHART.right}"/><text x="${CHART.left - 6}" y="${+y(v) + 4}" text-anchor="end">${power(v)}</text>`);
    // Beside other runs: where the same cell moved there. A reference's steps stand for these only where both are counted alike.
    shown().slice(1).forEach((t, k) => {
      if (!t?.frames.length || !(isRun(t) || view.align === 'step') || !(cell < t.frames[0].cells)) return;
      parts.push(`<path class="fv-v-ref fv-v-ref-${k}" d="${line(lineage(t.frames.slice(0, track(0).of), cell), (p) => p.v)}"><title>${escapeText(title(t))}</title></path>`);
    });
    const tau = tauNow();
    const taus = view.tau ? story.map((p) => ({ ...p, tau })) : story;
    parts.push(`<path class="fv-tau-line" d="${line(taus, (p) => p.tau)}"/>`);
    if (tau) parts.push(`<text class="fv-t-tau" x="${width - CHART.right}" y="${+y(tau) - 5}" text-anchor="end">tau</text>`);
    parts.push(`<path class="fv-v" d="${line(story, (p) => p.v)}"/>`);
    for (const p of story) {
      if (!(p.v > 0)) continue;
      parts.push(`<circle class="fv-dot" cx="${x(p.i)}" cy="${y(p.v)}" r="2.5"/>`);
      if (p.promoted) parts.push(`<circle class="fv-ring" cx="${x(p.i)}" cy="${y(p.v)}" r="6.5"/>`);
    }
  }
  const step = (width - CHART.left - CHART.right) / Math.max(1, track(0).of - 1), levels = fresco()[0].levels;
  parts.push(`<text x="${CHART.left - 6}" y="${CHART.strip + 10}" text-anchor="end">level</text>`);
  for (const p of story) {
    const x0 = Math.max(CHART.left, chartX(p.i, width) - step / 2), x1 = Math.min(width - CHART.right, chartX(p.i, width) + step / 2);
    parts.push(`<rect class="${p.level === levels ? 'fv-s-full' : p.level ? 'fv-s-mixed' : 'fv-s-low'}" x="${x0.toFixed(1)}" y="${CHART.strip}" width="${(x1 - x0).toFixed(1)}" height="12"/>`);
  }
  parts.push(`<text x="${CHART.left}" y="${CHART.strip + 26}">coarse</text><text x="${width - CHART.right}" y="${CHART.strip + 26}" text-anchor="end">${story.at(-1).level === levels ? 'fine' : ''}</text>`);
  const now = current();
  if (now) parts.push(`<line class="fv-cur" x1="${x(now.i)}" x2="${x(now.i)}" y1="${CHART.top - 8}" y2="${CHART.strip + 12}"/>`);
  const ups = story.filter((p) => p.promoted);
  ups.forEach((p, k) => {
    const at = chartX(p.i, width), left = at > width - 130 || k < ups.length - 1;
    parts.push(`<path class="fv-tri" d="M${x(p.i)} ${CHART.base + 2}l5 9h-10z"/><text class="fv-t-tau fv-t-halo" x="${at + (left ? -8 : 8)}" y="${CHART.base + 12}" text-anchor="${left ? 'end' : 'start'}">promoted, step ${p.i + 1}</text>`);
  });
  return parts.join('');
}

/** About eight steps: evenly spread, and always the ends and the steps before and after a promotion. */
function patchSteps(story) {
  const n = story.length, wanted = new Set([0, n - 1]);
  story.forEach((p, k) => { if (p.promoted && wanted.size < 6) { wanted.add(k); wanted.add(Math.min(n - 1, k + 1)); } });
  for (let k = 0; wanted.size < Math.min(8, n) && k < 8; k++) wanted.add(Math.round(k * (n - 1) / 7));
  for (let i = 0; wanted.size < Math.min(8, n); i++) wanted.add(i);
  return [...wanted].sort((a, b) => a - b);
}

function drawPatches(story, cell) {
  const frames = fresco(), box = $('patches'), steps = patchSteps(story), now = current();
  while (box.children.length > steps.length) box.lastChild.remove();
  steps.forEach((i, k) => {
    const button = box.children[k] ?? box.appendChild(newPatch());
    const nearest = now && steps.reduce((best, s) => (s <= now.i ? s : best), steps[0]) === i;
    button.dataset.step = frames[i].i;
    write(button.lastChild, `${frames[i].i + 1}${story[i].promoted ? ' ▲' : ''}`);
    button.setAttribute('aria-label', `Patch at step ${frames[i].i + 1}${story[i].promoted ? ', promoted after it' : ''}`);
    if (nearest) button.setAttribute('aria-current', 'step'); else button.removeAttribute('aria-current');
    drawPatch(button.firstChild, frames, i, cell);
  });
}

function newPatch() {
  const button = document.createElement('button'), canvas = document.createElement('canvas');
  button.type = 'button'; button.className = 'fv-patch';
  canvas.width = canvas.height = 96;
  button.append(canvas, document.createElement('span'));
  return button;
}

function drawPatch(canvas, frames, at, cell) {
  const frame = frames[at], picture = pictureAt(frames, at, true);
  const name = `${store.run} ${cell} ${frame.level[cell]} ${picture?.id} ${ink.casing}`;
  if (canvas.dataset.name === name) return;
  canvas.dataset.name = name;
  const ctx = canvas.getContext('2d');
  ctx.clearRect(0, 0, 96, 96);
  if (!picture) return;
  const [, rows, cols] = frame.shape, block = 1 << frame.levels, reach = 3 * block;
  const rect = tokenRect(frame, frame.index[cell]), row = Math.floor(cell / cols) % rows, col = cell % cols;
  const clampTo = (n, most) => Math.max(0, Math.min(Math.max(0, most - reach), n));
  const top = clampTo((row & ~(block - 1)) - block, rows), left = clampTo((col & ~(block - 1)) - block, cols);
  const side = 96 / reach;
  ctx.save(); ctx.translate(-left * side, -top * side);
  const pictures = pictureFrames(), own = Math.floor(cell / (rows * cols));
  let k = 0;                                                               // the first picture that this frame of the grid stands for
  while (k < pictures - 1 && Math.ceil(k * (frame.shape[0] - 1) / (pictures - 1) - 1e-9) < own) k++;
  drawPicture(ctx, picture, bitmapOf(picture), cols * side, rows * side, k);
  for (const [colour, width] of [[ink.casing, 3.5], [ink.shine, 1.5]]) { ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.strokeRect(rect.col * side, rect.row * side, rect.width * side, rect.height * side); }
  ctx.restore();
}

// -- words for screen readers

function summary() {
  const f = current(), s = stop();
  if (!f) return '';
  const full = meta().baselines?.full50, others = shown().slice(1).map((t, k) => { const g = t?.frames[s.at[k + 1]]; return g && `${title(t)} at step ${g.i + 1} of ${g.of}`; }).filter(Boolean);
  return `Step ${f.i + 1} of ${f.of}, sigma ${f.sigma.toFixed(2)}: ${whole(f.fine)} of ${plural(f.cells, 'cell')} fine, ${plural(f.promoted, 'token')} promoted now${
    full ? `, ${percent(f.flops_total / full)} of the 50-step cost spent` : ''}.${others.length ? ` Beside it: ${others.join('; ')}.` : ''}${
    pictureFrames() > 1 ? ` Frame ${view.slice + 1} of ${pictureFrames()}.` : ''}`;
}

/** Said once things are quiet; at most every four seconds while a run is playing or streaming. */
function tell() {
  clearTimeout(tellTimer);
  const busy = view.playing || view.looping || (view.follow && !recorded());
  const wait = busy ? Math.max(0, view.toldAt + 4000 - performance.now()) : 350;
  tellTimer = setTimeout(() => {
    const text = summary();
    view.toldAt = performance.now();
    if ($('summary').textContent !== text) $('summary').textContent = text;
  }, wait);
}

// -------------------------------------------------------------------------------------------------------------- events

function buildNfes() {
  $('nfe-seg').replaceChildren(...store.bundle.nfes.map((n) => {
    const label = document.createElement('label'), input = document.createElement('input'), span = document.createElement('span');
    Object.assign(input, { type: 'radio', name: `${uid}nfe`, value: n, className: 'fv-nfe' });
    input.onchange = () => setNfe(n);
    span.textContent = n;
    label.append(input, span);
    return label;
  }));
}

/** Drag on a horizontal strip: calls with x in 0..1 while it moves and once more, with done = true, at the end. */
function onDrag(node, pad, act) {
  const x = (event) => { const box = node.getBoundingClientRect(); return Math.min(1, Math.max(0, (event.clientX - box.left - pad) / (box.width - 2 * pad))); };
  let held = null, last = 0;
  node.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    held = event.pointerId; node.setPointerCapture(held);
    act(last = x(event), false);
  });
  node.addEventListener('pointermove', (event) => { if (event.pointerId === held) act(last = x(event), false); });
  const end = (event) => { if (event.pointerId === held) { held = null; act(last, true); } };
  node.addEventListener('pointerup', end);
  node.addEventListener('pointercancel', end);
}

function nearestStop(x) {
  const at = x * lineScale.domain;
  const where = (s, k) => (view.align === 'cost' ? s.cost : k + 1);
  let best = 0;
  stops.forEach((s, k) => { if (Math.abs(where(s, k) - at) < Math.abs(where(stops[best], best) - at)) best = k; });
  return best;
}

function cellAt(canvas, event) {
  const box = canvas.getBoundingClientRect(), shape = anyFrame().shape;
  const row = Math.floor((event.clientY - box.top) / box.height * shape[1]), col = Math.floor((event.clientX - box.left) / box.width * shape[2]);
  return row >= 0 && col >= 0 && row < shape[1] && col < shape[2] ? [gridFrame(shape), row, col] : null;
}

function tipText(frames, at, token) {
  const f = frames[at], cell = cellOf(token);
  if (!f || cell < 0) return '';
  const t = f.index[cell], v = dequantise(f.q[t], f.vmin, f.vmax), tau = tauNow();
  const story = lineage(frames, cell), up = story.find((p) => p.promoted);
  const level = f.level[cell] === f.levels ? `level ${f.level[cell]} (fine)` : `level ${f.level[cell]} (coarse)`;
  const below = v > 0 && tau && f.level[cell] < f.levels ? (v <= tau ? ', below tau' : ', above tau') : '';
  return `row ${token[1]}, column ${token[2]} · ${level}\nv ${scientific(v)}${below}\n${up ? `promoted after step ${up.i + 1}` : f.track === 0 && f.level[cell] < f.levels ? 'not promoted yet' : 'always fine'}`;
}

function showTip(canvas, which, token, px, py) {
  const tip = $('tip'), s = stop(), text = token ? tipText(lists()[which] ?? [], s.at[which], token) : '';
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = $('panes').getBoundingClientRect();
  const left = Math.min(box.width - tip.offsetWidth, Math.max(0, px - box.left + 14));
  const above = py - box.top - tip.offsetHeight - 10;
  tip.style.left = `${left}px`; tip.style.top = `${above > 0 ? above : py - box.top + 18}px`;
}

function moveCursor(dr, dc) {
  const f = anyFrame();
  if (!f) return;
  const now = gridFrame(f.shape), kept = view.cursor ?? view.token, from = kept?.[0] === now ? kept : [now, f.shape[1] >> 1, f.shape[2] >> 1];
  const rect = tokenRect(f, f.index[cellOf(from)]);
  // Move by the token under the cursor, so that a coarse token is one press wide.
  const row = dr > 0 ? rect.row + rect.height : dr < 0 ? rect.row - 1 : from[1], col = dc > 0 ? rect.col + rect.width : dc < 0 ? rect.col - 1 : from[2];
  view.cursor = [now, Math.max(0, Math.min(f.shape[1] - 1, row)), Math.max(0, Math.min(f.shape[2] - 1, col))];
  redraw();
}

function canvasKey(event, canvas, which) {
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.shiftKey && arrows) moveCursor(...arrows);
  else if (event.key === 'Enter' && view.cursor) selectToken(view.cursor);
  else if (event.key === 'Escape') { view.cursor = null; selectToken(null); }
  else return false;
  const box = canvas.getBoundingClientRect(), shape = anyFrame().shape, c = view.cursor;
  write($('token-said'), c ? tipText(lists()[which] ?? [], stop().at[which], c).replace(/\n/g, ', ') : '');
  showTip(canvas, which, c, c ? box.left + (c[2] + 1) / shape[2] * box.width : 0, c ? box.top + c[1] / shape[1] * box.height : 0);
  return true;
}

function tauKey(event) {
  const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -1e3, End: 1e3 }[event.key];
  if (!way || !tauNow() || !store.range) return false;
  if (recorded()) {
    const taus = store.bundle.taus, at = taus.indexOf(nearestLog(taus, tauNow()));
    setTau(taus[Math.max(0, Math.min(taus.length - 1, at + way))]);
    return true;
  }
  setTau(fromUnit(Math.min(1, Math.max(0, toUnit(tauNow(), store.range) + way / 60)), store.range), false);
  clearTimeout(commitTimer);
  commitTimer = setTimeout(() => onBehalf('user', () => setTau(view.tau)), 500);                  // one event when the keys are at rest, not one per press
  return true;
}

/** Keys the focused control needs for itself stay with it. */
function ownsKey(node, key) {
  if (node.matches('select, textarea, input:not([type="radio"]):not([type="range"])')) return true;
  if (node.matches('button')) return key === ' ' || key === 'Enter';
  if (node.matches('input')) return key === ' ' ? node.type === 'radio' : /^Arrow|^Home$|^End$|^Page/.test(key);
  return false;
}

function stepFrame(by) {
  if (pictureFrames() < 2) return;
  setLooping(false);
  setSlice(view.slice + by);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !stops.length) return;
  const node = event.target, pane = $$('canvas').indexOf(node);
  const act = { ',': () => stepFrame(-1), '.': () => stepFrame(1), ' ': () => setPlaying(!view.playing), ArrowLeft: () => userGoto(view.pos - 1), ArrowRight: () => userGoto(view.pos + 1), Home: () => userGoto(0),
    End: () => { view.follow = !recorded() && !store.done; userGoto(stops.length - 1); } }[event.key] ?? (/^[1-5]$/.test(event.key) ? () => setLayer(event.key) : null);
  if (pane >= 0 && canvasKey(event, node, pane)) { event.preventDefault(); return; }
  if (node === $('tau') && tauKey(event)) { event.preventDefault(); return; }
  if (!act || event.shiftKey || ownsKey(node, event.key)) return;
  event.preventDefault();
  act();
}

function listen() {
  // Between these two a person acts; what a script's own clicks do is not a person's.
  const acts = ['pointerdown', 'pointermove', 'pointerup', 'pointercancel', 'click', 'change', 'input', 'keydown'];
  for (const name of acts) root.addEventListener(name, (event) => { cause = event.isTrusted ? 'user' : 'api'; }, { capture: true });
  for (const [name, act] of [['layer', (n) => setLayer(n.value)], ['align', (n) => setAlign(n.value)], ['count', (n) => setPanes(n.value)]]) {
    for (const input of $$(name)) { input.name = `${uid}${name}`; input.onchange = () => act(input); }
  }
  $('opacity').oninput = (event) => setOpacity(event.target.value / 100);
  $('slice').oninput = (event) => { setLooping(false); setSlice(Number(event.target.value)); };
  $('loop').onclick = () => setLooping(!view.looping);
  $('against').onchange = (event) => { view.against = event.target.value; redraw(); };
  $('speed').onchange = (event) => { view.speed = Number(event.target.value); };
  $('play').onclick = () => setPlaying(!view.playing);
  $('back').onclick = () => userGoto(view.pos - 1);
  $('fwd').onclick = () => userGoto(view.pos + 1);
  $('live').onclick = () => { setPlaying(false); view.follow = true; goto(stops.length - 1); };
  root.addEventListener('keydown', onKey);
  onDrag($('line'), 1, (x) => userGoto(nearestStop(x)));
  onDrag($('hist'), 12, (x, done) => { if (store.range) { setPlaying(false); setTau(fromUnit(x, store.range), done); } });
  $('hist').addEventListener('pointerdown', () => $('tau').focus({ preventScroll: true }));
  $('hist-line').onclick = (event) => {
    const box = event.currentTarget.getBoundingClientRect(), of = track(0).of;
    userGotoStep(Math.round((event.clientX - box.left - CHART.left) / (box.width - CHART.left - CHART.right) * (of - 1)));
  };
  $('patches').onclick = (event) => { const patch = event.target.closest('.fv-patch'); if (patch) userGotoStep(Number(patch.dataset.step)); };
  [$('line'), $('hist'), $('hist-line')].forEach((node) => watcher.observe(node));
  figures().forEach(listenPane);
  new MutationObserver(() => { readInk(); redraw(); }).observe(document.body, { attributeFilter: ['class'] });
  for (const name of acts) root.addEventListener(name, () => { cause = 'data'; });
}

const watcher = new ResizeObserver((entries) => { for (const entry of entries) sizes.set(entry.target, entry.contentRect); redraw(); });

function listenPane(figure, which) {
  const canvas = figure.querySelector('canvas'), select = figure.querySelector('.fv-ref');
  canvas.onpointermove = (event) => { view.hover = cellAt(canvas, event); showTip(canvas, which, view.hover, event.clientX, event.clientY); redrawPictures(); };
  canvas.onpointerleave = canvas.onblur = () => { view.hover = null; $('tip').hidden = true; redrawPictures(); };
  canvas.onclick = (event) => selectToken(cellAt(canvas, event));
  if (select) select.onchange = () => setPane(which, Number(select.value));
  watcher.observe(canvas);
}

function userGotoStep(i) { setPlaying(false); gotoStep(Math.max(0, i)); }

/** Takes what the page says; once it has said what opens, whoever was faster than that is told (the gallery). */
function opened() {
  receive(props.value);
  if (!props.value || element.id === 'fresco-early') return;
  store.opened = true;
  root.dispatchEvent(new CustomEvent('fresco:opened', { bubbles: true }));
}

function setAlign(align) {
  if (align !== 'cost' && align !== 'step') return;
  view.align = align;
  for (const input of $$('align')) input.checked = input.value === align;
  again();
}

function forOthers(act) { return (...given) => onBehalf('api', () => { act(...given); return state(); }); }

if (root) {
  listen();
  readWish();
  root.frescoViewer = element.frescoViewer = {
    setStep: forOthers((i) => { setPlaying(false); gotoStep(Math.max(0, Math.round(i) || 0)); }), setStop: forOthers((k) => userGoto(Math.round(k) || 0)),
    setLayer: forOthers((n) => setLayer(LAYERS.includes(n) ? LAYERS.indexOf(n) + 1 : n)), setToken: forOthers((token) => selectToken(token)),
    setTau: forOthers((tau, done) => setTau(tau, done)), setNfe: forOthers((n) => setNfe(n)), setAlign: forOthers((align) => setAlign(align)),
    setFrame: forOthers((k) => setSlice(k)), setOpacity: forOthers((x) => setOpacity(x)),
    setPanes: forOthers((n) => setPanes(n)), setPane: forOthers((k, id) => setPane(Math.round(k), id)),
    play: forOthers(() => setPlaying(true)), pause: forOthers(() => setPlaying(false)), state, receive,
    // The early viewer goes to its place in the page and talks to the page's own host from now on.
    adopt: (place, host) => {
      const stub = place.querySelector('.fv-root'), holder = root.closest('#fresco-early');
      ({ trigger, props, server } = host);
      if (stub) stub.replaceWith(root); else place.append(root);
      place.frescoViewer = root.frescoViewer;
      element = place;
      holder.remove();
      host.watch('value', opened);
      opened();
      if (recorded()) sayRecorded();
      redraw();
    },
    // What the tests and the page look at.
    store, view, goto: gotoStep, gotoStop: userGoto, selectToken, applyView: (asked) => { window.frescoView = asked; applyWish(); redraw(); },
    stops: () => stops,
    pure: { decodeBytes, decodeBits, decodeWords, numberTokens, quantise, dequantise, decodeFrame, wouldPromote, histogram, steadyRange, stepAtCost, planStops, settingsThatDiffer, lineage, tokenRect, nearestLog, unit, scientific },
  };
  watch('value', opened);
  opened();
  publish();
}
