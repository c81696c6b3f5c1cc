"""The page's words, and the few lines of script around the viewer. No gradio here: the layouts place them."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parents[1] / "viewer"
VIEWER = {
    "html_template": (_HERE / "viewer.html").read_text(encoding="utf-8"),
    "css_template": (_HERE / "viewer.css").read_text(encoding="utf-8"),
    "js_on_load": (_HERE / "viewer.js").read_text(encoding="utf-8"),
}
CSS = Path(__file__).parents[2] / "assets" / "style.css"

ABOUT = """# Fresco
**See where a diffusion transformer spends its compute.** Fresco sketches at low resolution, watches how much each token's clean
estimate still moves, and expands only the tokens that have settled: those with variance below **tau**. Drag tau and watch which
go first. On the right: the same seed at full resolution, and what it costs."""

# One plain sentence for each choice.
HELP = {
    "seed": "One seed is one noise field: the same at every resolution, so sketch and picture belong together.",
    "model": "sinopia: the small bundled text-to-image model. oracle: a random field with an exact denoiser, no weights.",
    "preset": "Fills in the choices below. recommended: what measured best. paper: as published, where it says.",
    "drive": "Promote by threshold (tau) or by a fixed share of the coarse tokens (ratio); the other one follows.",
    "tau": "Variance below which a token counts as settled. Low: few go early, cheap. High: many go early, dear.",
    "log_tau": "The same tau on a log scale.",
    "ratio": "Share of the coarse tokens promoted at the first check.",
    "nfe": "Number of function evaluations: how many times the model is called.",
    "stages": "Calls in each stage: low (all coarse), mixed (some promoted), full (all fine).",
    "reference": "Full resolution of the same seed. Finished ones are kept, so moving tau costs only Fresco's own steps.",
    "preview_every": "Show the clean estimate every k steps; 0 only at the end. Previews are not counted as model time.",
    "window": "How many of the latest estimates the variance is taken over.",
    "checks": "How often tokens are looked at. rewind: once. 'every' mixed step: with carry alone, which promotes for free.",
    "transition": "carry: keep the noise level, use the clean estimate. rewind: exact, kept tokens go back along their path."
    " renoise: the paper's, add field noise. renoise_x0: noise the clean estimate anew. restart: fresh noise, as others do."
    " redraw: keep the noise level, promoted tokens get new noise (Jenga).",
    "landing": "How many times as much noise to signal there is after a promotion, for renoise, renoise_x0 and restart. 2: the"
    " least, exact; others go higher.",
    "size": "Height × width in pixels; any other can be typed, such as 128 x 112, with frames first for a video.",
    "head": "Calls at full resolution before the sketch; 0 but for high-low-high sampling (Bottleneck).",
    "noise": "field: bound to coordinates, so every resolution sees the same noise. fresh: drawn anew, the ablation.",
    "signal": "x0: the clean estimate over time. z: the noisy state over time, as in the paper. channel: one step, across"
    " channels.",
    "selection": "Which tokens go first. variance: settled ones (Fresco). variance_high: unsettled ones. The others need ratio:"
    " attention: the most looked at. attention_variance: half that, half the unsettled. edge: outlines."
    " even and random: no matter what, evenly or not. all: everything at once.",
    "expansion": "hadamard: per latent pixel, exact. hadamard_token: the paper's formula taken literally. nearest, bilinear"
    " and lanczos: enlarged as a picture is, no noise added.",
    "frame": "Where mixed tokens sit for the model's position code: in coarse units (centred or cornered), fine units, or"
    " phase-aligned per query; auto takes the last where the model can.",
    "levels": "Doublings from sketch to picture: 1 is half resolution per side, 2 a quarter.",
    "detail_gain": "Adds the signal power that expanded details lack; 0 is off.",
    "guidance": "How strongly the prompt steers; empty is the model's own.",
}
LABELS = {
    "nfe": "NFE (model calls)", "tau": "tau", "log_tau": "tau, log10", "ratio": "ratio", "drive": "Promote by",
    "preview_every": "Preview every k steps", "checks": "Checks", "frame": "Position frame", "detail_gain": "Detail gain",
    "landing": "Noise after a promotion (landing)", "head": "Full calls first (head)",
}  # fmt: skip

# The tabs beside "Watch", in their order: the name in the address, the name on the page, and what to look for.
TABS = {
    "watch": "Watch", "compare": "Compare", "sweep": "Sweep", "ablation": "Ablation", "proposition": "Proposition 1",
    "convergence": "Convergence", "expansion": "Expansion",
}  # fmt: skip
LAB_TABS = {"lab": "sweep"}  # other names that an address may give
LOOK = {
    "compare": "Two to four runs of one prompt and seed, side by side. **Look for** where the difference layer lights up, and"
    " align by cost: what does each have to show for the same FLOPs?",
    "sweep": "Two settings, every combination, from the controls as they are; what you run joins what is recorded of the same"
    " prompt. **Look for** points above the dashed line: only"
    " there is a run more like the full picture than plain full resolution at that cost. Likeness is not beauty: look at the"
    " pictures, too.",
    "ablation": "The paper's switches on your prompt, one at a time. **Look for** which switch changes the picture, and which"
    " only its cost: the third column shows where it differs from the first row.",
    "proposition": "One noise field, seen at three resolutions. **Look for** the marked cell: with the field, the four cells"
    " below add up to it, so a promoted token goes on with noise it already had. Switch to fresh noise and watch that go.",
    "convergence": "Does variance tell which tokens are finished? **Look for** a line near 1 in the mixed stage, where tokens"
    " are chosen: there the settled tokens really are the ones with the least error left. Near 0 a map says nothing.",
    "expansion": "One token becomes four. **Look for** what is added: the parent's own content and noise are only spread; all"
    " that is new is three details, read from the noise field.",
}
LABELS |= {
    "axis": "Setting", "values": "Values, with commas", "base": "Start from", "more": "Further switches of this project too",
    "curve": "Full resolution, steps", "quality": "Likeness", "mark_row": "Marked row", "mark_col": "Marked column",
    "shelf": "Recorded with the page",
    "channel": "Latent channel", "cell_row": "Row of the token", "cell_col": "Column of the token", "which": "Which token",
}  # fmt: skip

_ROOT = "document.querySelector('#viewer .fv-root')"
_API = f"({_ROOT}?.closest('#viewer') && [...document.querySelectorAll('#viewer *')].find(e => e.frescoViewer)?.frescoViewer)"

JS = {
    # Repeats beside the slider what the viewer counts: how many tokens tau lets through at the step shown.
    "fraction": """const wait = setInterval(() => {
  const text = document.querySelector('#viewer .fv-tau-text');
  if (!text) return;
  clearInterval(wait);
  const copy = () => { element.textContent = text.textContent.trim(); };
  new MutationObserver(copy).observe(text, { childList: true, characterData: true, subtree: true });
  copy();
}, 200);""",
    # The address says where to look; the viewer takes it once enough frames are there.
    "head": """<script>
window.frescoView = (() => {
  const q = new URLSearchParams(location.search), v = {};
  document.documentElement.dataset.tab = { lab: 'sweep' }[q.get('tab')] ?? q.get('tab') ?? 'watch';
  if (/^\\d+$/.test(q.get('step') ?? '')) v.step = Number(q.get('step'));
  if (/^\\d+,\\d+,\\d+$/.test(q.get('token') ?? '')) v.token = q.get('token');
  if (/^[1-5]$/.test(q.get('layer') ?? '')) v.layer = Number(q.get('layer'));
  if (Number(q.get('tau')) > 0) v.tau = Number(q.get('tau'));
  if (Number(q.get('nfe')) > 0) v.nfe = Number(q.get('nfe'));
  return v;
})();
</script>""",
    "dice": "() => Math.floor(Math.random() * 4294967296)",
    "log_to_tau": f"(x) => {{ const t = Number((10 ** x).toPrecision(3)); const v = {_API}; v?.setTau(t, false); return t; }}",
    "tau_release": f"(x) => {{ const v = {_API}; const r = {_ROOT};"
    " if (r?.dataset.mode === 'recorded') v?.setTau(10 ** x, true); }",
    "split": "(nfe, head) => { const n = Math.round(nfe - (head || 0)); return (SPLITS)[n] ?? [Math.max(1, n - 2), 1, 1]; }",
    "sum": "(...calls) => calls.reduce((sum, n) => sum + (n || 0), 0)",
    "tau_to_log": "(t) => t > 0 ? Number(Math.log10(t).toFixed(2)) : -6",
    # Settings come from the server as a query string; the view (step, token, layer) is added here.
    "copy_link": """(query, space) => {
  const d = document.querySelector('#viewer .fv-root')?.dataset ?? {}, q = new URLSearchParams(query);
  for (const name of ['step', 'token', 'layer']) if (d[name]) q.set(name, d[name]);
  if (d.run?.startsWith('recorded:') && !d.run.startsWith('recorded:own-')) q.set('run', d.run.slice(9));
  const stop = document.querySelector('.fl-lesson')?.dataset.stop;
  if (stop) q.set('stop', stop);
  const tab = document.documentElement.dataset.tab;
  if (tab && tab !== 'watch') q.set('tab', tab);
  const base = space ? 'https://huggingface.co/spaces/' + space : location.origin + location.pathname;
  const address = base + '?' + q;
  navigator.clipboard?.writeText(address).catch(() => {});
  return address;
}""",
    # A run is opened by its picture, or by its point in the chart: Plotly's own event, connected when the pointer gets there.
    # A recorded one opens in the browser alone.
    "pick": """const API = () => (PLAYER);
let turn = 0;
const show = (key, url) => {
  if (!key) return;
  if (!key.startsWith('recorded:')) { trigger('select', { key }); return; }
  const [slug, tau, nfe] = key.slice(9).split('/'), v = API();
  if (!v) return;
  const mine = ++turn, here = () => mine === turn && v.state().run === 'recorded:' + slug;
  const choose = () => {  // tau and NFE are two steps, so the whole table must be there
    if (!here()) return;
    if (!v.store.bundle.runs.every((run) => run.frames.every((k) => v.store.base[k]))) { setTimeout(choose, 100); return; }
    v.setTau(Number(tau), true);
    v.setNfe(Number(nfe));
  };
  if (here()) choose();
  else {
    window.frescoView = { tau: Number(tau), nfe: Number(nfe) };
    v.receive(JSON.stringify({ type: 'bundle-url', url, linked: true }));
  }
  (OPENED)();
};
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-key]');
  if (chosen) show(chosen.dataset.key, chosen.dataset.url);
});
document.addEventListener('pointerover', (event) => {
  const chart = event.target.closest?.('#sweep-chart .js-plotly-plot');
  if (!chart || chart.dataset.wired || element.closest('#sweep-grid') === null) return;
  chart.dataset.wired = 'yes';
  chart.on('plotly_click', (at) => {
    const key = at.points[0]?.customdata;
    show(key, [...element.querySelectorAll('[data-key]')].find((one) => one.dataset.key === key)?.dataset.url);
  });
});""",
    # Which tab is open decides what the style sheet shows beside it.
    "tab": "() => { document.documentElement.dataset.tab = 'TAB'; }",
    # A run is to be watched, from whichever tab it was started.
    "watch": "() => { document.getElementById('tab-watch-button')?.click(); }",
    "opened": """() => {
  document.documentElement.dataset.opened = document.documentElement.dataset.tab;
  document.querySelector('#watch')?.scrollIntoView({ block: 'start',
    behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
}""",
    "save": """(file) => {
  if (!file) return;
  const [name, uri] = JSON.parse(file), a = document.createElement('a');
  a.href = uri; a.download = name; a.click();
}""",
}
JS["pick"] = JS["pick"].replace("PLAYER", _API).replace("OPENED", JS["opened"])
