// The body of a function (element, trigger, props, server, upload, watch): the shelf of recorded runs above the viewer.
//
// Its value is one JSON message (viz/story.py): {runs: [{slug, title, line, prompt, thumb, url, query, facts}], first, page}.
// A run without `url` lies inline, in <script type="application/json" data-slug="…">. `page` is true where a server can run
// again: then settings can be taken over and a visitor's own finished runs kept, in this browser's IndexedDB and nowhere else.
//
// For other scripts: `document.querySelector('.fg-gallery').frescoGallery`, with open(slug) -> Promise<bool>, slugs().

const shelf = element.querySelector('.fg-gallery');
const part = (name) => shelf.querySelector(`.fg-${name}`);
let story = { runs: [], page: false }, own = [], chosen = null, turn = 0, coming = false, early = null;
const bundles = new Map();

function player() { return document.querySelector('#viewer .fv-root')?.frescoViewer ?? null; }
/** The slug of the recorded run that the viewer shows, if it shows one. */
function playing() { return /^recorded:(.*)/.exec(player()?.state().run ?? '')?.[1] ?? null; }
function tell(text) { part('said').textContent = text; }
function all() { return [...own, ...story.runs]; }

// --------------------------------------------------------------------------------------------------------- opening a run

async function bundleOf(run) {
  if (run.bundle) return run.bundle;
  if (!bundles.has(run.slug)) {
    const inline = [...document.querySelectorAll('script[type="application/json"][data-slug]')].find((s) => s.dataset.slug === run.slug);
    if (inline) bundles.set(run.slug, JSON.parse(inline.textContent));
    else {
      if (location.protocol === 'file:') throw new Error('this folder wants a web server (python -m http.server)');
      const answer = await fetch(new URL(run.url, document.baseURI));
      if (!answer.ok) throw new Error(`the server said ${answer.status}`);
      bundles.set(run.slug, await answer.json());
    }
  }
  return bundles.get(run.slug);
}

/** Shows a run in the viewer; true once it is there. A later call wins over one still loading. */
async function open(slug, linked = false) {
  const run = all().find((r) => r.slug === slug), mine = ++turn;
  coming = Boolean(run);
  if (!run) return false;
  let bundle = null;
  try { bundle = await bundleOf(run); } catch (error) {
    player()?.receive({ type: 'note', level: 'warn', text: `The recorded run could not be loaded: ${error.message}.` });
  }
  if (mine !== turn) return false;
  coming = false;
  const v = player();
  if (!bundle || !v) { if (v) choose(playing()); return false; }
  v.receive(bundle, linked);
  return v.state().run === `recorded:${bundle.slug}`;
}

// ------------------------------------------------------------------------------------------------------- the visitor's own

const DATABASE = 'fresco', TABLE = 'runs';
/** One transaction on the browser's own database; the promise is kept once it is on disk. */
function database(mode, act) {
  return new Promise((keep, fail) => {
    const asking = indexedDB.open(DATABASE, 1);
    asking.onupgradeneeded = () => asking.result.createObjectStore(TABLE, { keyPath: 'slug' });
    asking.onerror = () => fail(asking.error);
    asking.onsuccess = () => {
      const db = asking.result, work = db.transaction(TABLE, mode), result = act(work.objectStore(TABLE));
      work.oncomplete = () => { db.close(); keep(result.result); };
      work.onabort = work.onerror = () => { db.close(); fail(work.error); };
    };
  });
}

async function readOwn() {
  if (!story.page) return;
  try { own = (await database('readonly', (table) => table.getAll())).sort((a, b) => b.made - a.made); } catch { own = []; }
  build();
}

const RAW = ['sigma', 'sigma_next', 'stage', 'shape', 'levels', 'tokens', 'variance', 'vmin', 'vmax', 'check', 'final', 'tau', 'ratio', 'gap', 'flops', 'ms',
  'preview_ms', 'preview', 'frames', 'columns'];
function encode(bytes) { let text = ''; for (const b of bytes) text += String.fromCharCode(b); return btoa(text); }
function pack(bits) { const out = new Uint8Array((bits.length + 7) >> 3); bits.forEach((b, k) => { out[k >> 3] |= b << (7 - (k & 7)); }); return out; }

/** The viewer's live run as a bundle, the message that a recorded run is. */
function bundleOfLive(v, slug) {
  const frames = [], tracks = [...v.store.tracks.values()];
  const place = (t) => t.frames.map((f) => frames.push({ ...Object.fromEntries(RAW.filter((name) => f[name] !== undefined).map((name) => [name, f[name]])), level: encode(f.level), selected: encode(pack(f.selected)) }) - 1);
  const parts = tracks.map((t) => ({ meta: { ...t.meta, recorded: true }, frames: place(t), label: t.label, steps: t.of, psnr: t.frames.at(-1).psnr, ssim: t.frames.at(-1).ssim }));
  const [run, ...references] = parts, m = run.meta;
  return { type: 'bundle', v: 1, slug, prompt: m.prompt, seed: m.seed, model: m.model, provenance: { weights: m.provenance, device: m.device },
    taus: m.tau ? [m.tau] : [], nfes: [m.nfe], frames, runs: [{ tau: m.tau ?? null, nfe: m.nfe, ...run }], references };
}

function queryOf(m) {
  const q = new URLSearchParams({ prompt: m.prompt, model: m.model, seed: m.seed, nfe: m.nfe, stages: m.stages.join('-'), ...(m.tau ? { tau: m.tau } : { ratio: m.ratio }) });
  for (const name of ['size', 'head', 'selection', 'signal', 'transition', 'landing', 'noise', 'expansion', 'frame', 'window', 'checks', 'levels', 'detail_gain', 'guidance']) {
    if (m[name] !== undefined && m[name] !== null) q.set(name, Array.isArray(m[name]) ? m[name].join('-') : m[name]);
  }
  return String(q);
}

async function keepLive() {
  const v = player(), state = v?.state();
  if (!state || state.mode !== 'live' || !state.finished) return;
  const slug = `own-${state.run}`, bundle = bundleOfLive(v, slug), m = bundle.runs[0].meta;
  const thumb = [...bundle.runs[0].frames].reverse().map((k) => bundle.frames[k].preview).find(Boolean) ?? '';
  const facts = { model: m.model, seed: m.seed, NFE: m.nfe, stages: m.stages.join(' + '), ...(m.tau ? { tau: m.tau } : { ratio: m.ratio }), transition: m.transition,
    noise: m.noise, signal: m.signal, selection: m.selection, weights: m.provenance };
  const run = { slug, title: m.prompt.split(',')[0].slice(0, 60), prompt: m.prompt, line: 'Kept in this browser only.', thumb, query: queryOf(m), facts, bundle, made: Date.now(), own: true };
  try { await database('readwrite', (table) => table.put(run)); } catch (error) {
    v.receive({ type: 'note', level: 'warn', text: `This browser did not keep the run (${error?.message ?? 'it has no room'}).` });
    return;
  }
  own = [run, ...own.filter((r) => r.slug !== slug)];
  chosen = slug;
  build();
  tell(`Kept: ${run.title}.`);
}

async function rename(name) {
  const run = own.find((r) => r.slug === chosen);
  if (!run || !name) return;
  run.title = name;
  await database('readwrite', (table) => table.put(run)).catch(() => {});
  build();
  tell(`Renamed: ${name}.`);
}

async function remove() {
  const run = own.find((r) => r.slug === chosen);
  if (!run) return;
  await database('readwrite', (table) => table.delete(run.slug)).catch(() => {});
  own = own.filter((r) => r !== run);
  chosen = null;
  build();
  tell(`Removed: ${run.title}.`);
  (part('list').querySelector('input') ?? part('list')).focus();
}

// ------------------------------------------------------------------------------------------------------------- drawing

function node(tag, text, more) { const made = Object.assign(document.createElement(tag), more); if (text) made.textContent = text; return made; }

function card(run) {
  const item = node('li'), label = node('label'), input = node('input', '', { type: 'radio', name: 'fg-run', value: run.slug });
  input.checked = run.slug === chosen;
  input.setAttribute('aria-label', run.own ? `${run.title}, yours` : run.title);     // the words beside it are not always shown
  input.onchange = () => { choose(run.slug); open(run.slug); ask(run.own ? { query: run.query } : { slug: run.slug }); };
  const image = node('img', '', { alt: '', width: 92, height: 92, loading: 'lazy', decoding: 'async' });
  if (/^data:image\/(webp|png|jpeg);base64,/.test(run.thumb)) image.src = run.thumb;
  label.append(input, image, node('span', run.title));
  if (run.own) label.append(node('small', 'yours'));
  item.append(label);
  return item;
}

function build() {
  const runs = all(), focused = part('list').contains(document.activeElement) ? document.activeElement.value : null;
  shelf.hidden = runs.length < 2 && !story.page;
  part('list').replaceChildren(...runs.map(card));
  if (focused) [...part('list').querySelectorAll('input')].find((i) => i.value === focused)?.focus();
  about();
}

function about() {
  const run = all().find((r) => r.slug === chosen);
  part('about').hidden = !run;
  part('form').hidden = true;
  if (!run) return;
  part('line').textContent = run.line;
  part('again').hidden = !story.page;
  part('rename').hidden = part('remove').hidden = !run.own;
  part('facts').replaceChildren(...Object.entries(run.facts ?? {}).map(([name, value]) => {
    const row = node('div');
    row.append(node('dt', name), node('dd', String(value)));
    return row;
  }));
}

/** Asks the page to fill in a run's settings. The page's own first ones may still be on their way: then once more, after them. */
function ask(what) {
  if (!story.page) return;
  if (!player()?.store.opened) early = what;
  trigger('select', what);
}

function choose(slug) {
  chosen = slug;
  for (const input of part('list').querySelectorAll('input')) input.checked = input.value === slug;
  about();
}

function follow(event) {
  const { run, mode, finished } = event.detail;
  part('keep').hidden = !story.page;                                        // its place is kept free, so that nothing moves when it comes
  part('keep').style.visibility = mode === 'live' && finished && !own.some((r) => r.slug === `own-${run}`) ? '' : 'hidden';
  const slug = playing();
  if (event.detail.changed.includes('run') && !coming && slug !== chosen && (slug || chosen !== `own-${run}`)) choose(slug);   // not while the chosen one still loads
}

function take() {
  try { story = JSON.parse(props.value || '{"runs":[]}'); } catch { return; }
  build();
  readOwn();
  if (story.first && !story.page) {
    const asked = new URLSearchParams(location.search).get('run');
    const slug = story.runs.some((r) => r.slug === asked) ? asked : story.first;
    choose(slug);
    open(slug, true);
  } else {
    if (playing()) choose(playing());
  }
}

if (shelf) {
  shelf.frescoGallery = { open: async (slug) => { const shown = await open(slug); if (shown) choose(slug); return shown; }, slugs: () => all().map((r) => r.slug) };
  document.addEventListener('fresco:change', (event) => { if (shelf.isConnected) follow(event); });
  document.addEventListener('fresco:opened', () => { if (early) trigger('select', early); early = null; });
  part('keep').onclick = keepLive;
  part('again').onclick = () => { const run = all().find((r) => r.slug === chosen); if (run) ask({ query: run.query }); };
  part('rename').onclick = () => { part('form').hidden = false; part('name').value = all().find((r) => r.slug === chosen)?.title ?? ''; part('name').select(); };
  part('remove').onclick = remove;
  part('form').onsubmit = (event) => { event.preventDefault(); rename(part('name').value.trim()); part('rename').focus(); };
  watch('value', take);
  take();
}
