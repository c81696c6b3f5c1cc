"""Every method that Fresco is compared with, as settings of the one sampler and, for caches, a wrapper. Source: METHOD 3.

A baseline is a `FrescoConfig` and perhaps a cache. It runs like anything else:

    from fresco import load_model, run
    from fresco.baselines import CATALOGUE

    ralu = CATALOGUE["ralu-18"]
    model = load_model("sinopia")
    trace = run(ralu.model(model), "a red fox", ralu.on(model))

Presets are the published settings where there are any; `deviations` says in what a run here differs, and `open` why the
published FLOPs do not follow from the settings, where they do not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fresco import cost, published, schedule
from fresco.caching import Cache, FirstBlock, TaylorSeer, TeaCache
from fresco.config import FrescoConfig
from fresco.denoiser import AttentionDenoiser, Denoiser, Model
from fresco.errors import FrescoError
from fresco.sparse import Sparse

_FRESCO = "Fresco (CVPR 2026, arXiv 2601.07462)"
_BOTTLENECK = "Bottleneck Sampling (arXiv 2503.18940)"
_RALU = "RALU (arXiv 2507.08422) and its published code"
_SPEED = "Spectral Progressive Diffusion, SPEED (arXiv 2605.18736)"
_JENGA = "Jenga (arXiv 2505.16864), its progressive resolution alone"
_JIT = "Just-in-Time, JiT (arXiv 2603.10744) and its published code"
_AVITS = "AViTS, Fresco's sibling (2026)"
_TEACACHE = "TeaCache (arXiv 2411.19108)"
_TAYLORSEER = "TaylorSeer (arXiv 2503.06923), diffusers' implementation"
_FIRST_BLOCK = "FirstBlockCache (ParaAttention), diffusers' implementation"

FLUX_SPECTRUM = (203.615097, 1.915461)
"""(A, beta): signal variance per channel of FLUX latents, A f^-beta, f in cycles per image. Source: SPEED, for FLUX's
autoencoder; at 32, 48 and 64 cycles it is the lambda of METHOD 2.2."""


class CachedModel:
    """A model whose denoisers have a cache around them; everything else is the model's own."""

    def __init__(self, model: Model, cache: Cache, label: str) -> None:
        self._model, self._cache = model, cache
        self.provenance = f"{model.provenance}; {label}"  # a finished run is remembered by it, and must not be mistaken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def bind(self, config: FrescoConfig) -> Denoiser:
        """Return the denoiser for one run, cache included."""
        return self._cache.wrap(self._model.bind(config), config)


@dataclass(frozen=True)
class Baseline:
    """One method at one published operating point.

    Attributes:
        name: key in CATALOGUE. title: for people. source: paper or code.
        config: the settings.
        cache: what stands around the denoiser, if anything.
        checkpoint: name in `fresco.cost.SHAPES` that its published row was measured on.
        text_tokens: text tokens of that measurement where they were not the checkpoint's usual ones.
        row: (table, method, nfe) of its row in `fresco.published`, if it has one.
        computed: published TFLOPs in whole forwards, where which calls are computed depends on the picture.
        speedup: published FLOPs of 50 full steps over its own, where `fresco.published` has no row of it.
        open: why its published FLOPs do not follow from the settings; empty where they do, or where none are published.
        deviations: in what a run here differs from the published method.
    """

    name: str
    title: str
    source: str
    config: FrescoConfig
    cache: Cache | None = None
    checkpoint: str = "flux-dev"
    text_tokens: int | None = None
    row: tuple[int, str, int | None] | None = None
    computed: int | None = None
    speedup: float | None = None
    open: str = ""
    deviations: tuple[str, ...] = ()

    def on(self, model: Model) -> FrescoConfig:
        """Return the settings for a model: where it reports no attention, a score of both falls back on variance alone."""
        if self.config.watches_attention and not isinstance(model.bind(self.config), AttentionDenoiser):
            return self.config.replace(selection="variance_high")
        return self.config

    def model(self, model: Model) -> Model:
        """Return the model to run: with the cache around its denoisers, or itself."""
        return model if self.cache is None else CachedModel(model, self.cache, self.name)  # type: ignore[return-value]

    @property
    def published(self) -> published.Row | None:
        """The published row."""
        if self.row is None:
            return None
        return next(r for r in published.ROWS if (r.table, r.method, r.nfe) == self.row)

    def published_tflops(self, reference: float) -> float | None:
        """Return the published TFLOPs of a run, or what its published speed-up makes of 50 full steps of `reference`."""
        row = self.published
        if row is not None and "tflops" in row.published:
            return row.published["tflops"]
        speedup = self.speedup if row is None else row.published.get("flops")
        return None if speedup is None else reference / speedup

    def shape(self) -> cost.TransformerShape:
        """Return what the FLOPs of its published measurement depend on."""
        shape = cost.SHAPES[self.checkpoint]
        return shape if self.text_tokens is None else dataclasses.replace(shape, text_tokens=self.text_tokens)

    def flops(self, shape: cost.TransformerShape, coarse: int, full: int) -> list[float]:
        """Return the FLOPs of each call, or of the published number of computed ones where that is all that is known.

        Args:
            shape: the transformer.
            coarse, full: tokens of the coarsest and of the finest grid.

        Raises:
            FrescoError: where they depend on the picture and no count is published.
        """
        tokens = token_counts(self.config, coarse, full)
        if self.cache is None:
            return [shape.flops(count) for count in tokens]
        costs = self.cache.costs(tokens, shape)
        if costs is None and self.computed is not None:
            return [shape.flops(n) if i < self.computed else shape.shell_flops(n) for i, n in enumerate(tokens)]
        if costs is None:
            raise FrescoError(f"which calls {self.name} computes depends on the picture, and no count is published; run it")
        return costs


def token_counts(config: FrescoConfig, coarse: int, full: int) -> list[int]:
    """Return the tokens of each call of a run that is driven by ratio, on one doubling.

    Raises:
        FrescoError: on tau, or several doublings: then the counts depend on the picture.
    """
    if config.is_full:
        return [full] * config.nfe
    if config.tau is not None or config.levels != 1:
        raise FrescoError("token counts follow from the settings only with a ratio and one level; give ratio, or run it")
    checks, found = schedule.checks(config), []
    now = full if config.head else coarse
    for step in range(config.nfe):
        found.append(now)
        if step + 1 == config.head:
            now = coarse
        if step in checks:
            chosen = coarse if config.selection == "all" else math.floor(checks[step].targets[0] * coarse + 1e-9)
            now = cost.mixed_tokens(coarse, chosen, full)
    return found


def spectral_switch(power: float, delta: float) -> float:
    """Return the sigma down to which the coarse grid will do: above it every frequency it lacks is all but noise.

    There the signal-to-noise ratio of its highest frequency, `((1-sigma)/sigma)^2 power`, is delta; power laws only fall.

    Args:
        power: signal variance per channel at the highest frequency of the coarse grid.
        delta: tolerated signal-to-noise ratio, above 0.

    Source: SPEED's criterion. Deviation: the paper's exact expression is not restated; at 50 FLUX steps this one gives the
    18 and 28 coarse steps that are published for delta .01 and .05.
    """
    return 1 / (1 + math.sqrt(delta / power))


def flux_power(cycles: float) -> float:
    """Return the signal variance per channel of FLUX latents at a frequency in cycles per image."""
    amplitude, exponent = FLUX_SPECTRUM
    return float(amplitude * cycles**-exponent)


def _full(nfe: int) -> Baseline:
    row = (1, "full resolution", nfe)
    return Baseline(f"full-{nfe}", f"Full resolution, {nfe} steps", "FLUX.1", FrescoConfig.full(nfe), row=row)


def _fresco(nfe: int) -> Baseline:
    return Baseline(
        f"fresco-{nfe}", f"Fresco, NFE {nfe}", _FRESCO, FrescoConfig.paper(nfe), row=(1, "Fresco", nfe),
        deviations=("as literal as a valid flow state allows: see METHOD 2.1 and 2.6",),
    )  # fmt: skip


def _ralu(nfe: int, stages: tuple[int, int, int], ends: tuple[float, float], z: float, ratio: float) -> Baseline:
    """Return RALU; `ends` are its e, clean fractions, where ours are noise levels."""
    return Baseline(
        f"ralu-{nfe}", f"RALU, NFE {nfe}", _RALU,
        FrescoConfig(
            nfe=nfe, stages=stages, switch=(1 - ends[0], 1 - ends[1]), ratio=ratio, selection="edge",
            expansion="hadamard_token", transition="renoise", landing=z, noise="fresh", frame="coarse_corner",
        ),
        row=(1, "RALU", nfe),
        deviations=(
            "edges are gradients of the clean latent, not Canny's on the decoded one",
            "kept tokens are noised to the right variance; the published code adds 1/Z^2 too much",
            "each stage's sigmas follow the model's own shift, not a fitted one",
            f"{ratio:.0%} of the tokens early, as the published FLOPs ask for; the code's default is lower",
        ),
    )  # fmt: skip


def _speed(delta: float, low: int) -> Baseline:
    return Baseline(
        f"speed-{delta:g}", f"SPEED, delta {delta:g}", _SPEED,
        FrescoConfig(
            nfe=50, stages=(low, 0, 50 - low), switch=(spectral_switch(flux_power(32), delta),), selection="all",
            transition="renoise", noise="fresh",
        ),
        deviations=(
            "the switch follows FLUX's power spectrum at 1024 x 1024 whatever the model; see spectral_switch for others",
            "the expansion is Haar's, not the DCT's",
        ),
    )  # fmt: skip


def _jit(nfe: int, densities: tuple[float, float, float], speedup: float, open_: str = "") -> Baseline:
    return Baseline(
        f"jit-{nfe}", f"JiT, NFE {nfe}", _JIT, FrescoConfig.full(nfe), cache=Sparse(densities), text_tokens=256,
        speedup=speedup, open=open_,
        deviations=(
            "sigmas are the model's own, not a beta schedule's",
            "newly active tokens get the start's noise; the published code draws another, unseeded one",
        ),
    )  # fmt: skip


def _avits(nfe: int, stages: tuple[int, int, int]) -> Baseline:
    return Baseline(
        f"avits-{nfe}", f"AViTS, NFE {nfe}", _AVITS,
        FrescoConfig(
            nfe=nfe, stages=stages, ratio=0.4, selection="attention_variance", signal="z", expansion="hadamard",
            transition="renoise", frame="coarse",
        ),
        row=(1, "AViTS", nfe), open="its split and its share of early tokens are not published",
        deviations=("the attention's weight in the score is not published: one half, both scaled to 0..1",
                    "the split is a guess" + (" that fits the published FLOPs" if nfe > 9 else "")),
    )  # fmt: skip


def _teacache(threshold: float, computed: int) -> Baseline:
    return Baseline(
        f"teacache-{threshold:g}", f"TeaCache, threshold {threshold:g}", _TEACACHE, FrescoConfig.full(50),
        cache=TeaCache(threshold), row=(1, f"TeaCache {threshold:g}", 50), computed=computed,
        deviations=("on models that are no FLUX transformer the state stands for the modulated input, unscaled",),
    )  # fmt: skip


def _taylorseer(interval: int, warmup: int, open_: str = "") -> Baseline:
    return Baseline(
        f"taylorseer-{interval}", f"TaylorSeer, N = {interval}", _TAYLORSEER, FrescoConfig.full(50),
        cache=TaylorSeer(interval, warmup), row=(1, f"TaylorSeer N={interval}", 50), open=open_,
        deviations=(
            "warm-up chosen so that as many calls are computed as were published; order 2",
            "on models that are no FLUX transformer x0 is forecast, not the blocks' features",
        ),
    )  # fmt: skip


def _combination(name: str, title: str, config: FrescoConfig, row: tuple[int, str, int | None], **changes: Any) -> Baseline:
    return Baseline(name, title, _FRESCO, config, row=row, open="its split is not published", **changes)


_ALL: Sequence[Baseline] = (
    *(_full(nfe) for nfe in (50, 30, 18)),
    *(_fresco(nfe) for nfe in (30, 18, 11)),
    Baseline(
        "bottleneck-30", "Bottleneck Sampling, NFE 30", _BOTTLENECK,
        FrescoConfig(
            nfe=30, head=6, stages=(12, 0, 12), selection="all", expansion="lanczos", transition="restart", noise="fresh",
        ),
        row=(1, "Bottleneck Sampling", 30), open="its split is not published",
        deviations=(
            "the split is a guess that fits the published FLOPs",
            "each stage's sigmas follow the model's own shift, not a stage's",
        ),
    ),
    _ralu(18, (5, 6, 7), (0.3, 0.45), 6.317, 0.5),
    _ralu(10, (2, 3, 5), (0.2, 0.3), 6.261, 0.4),
    _speed(0.01, 18),
    _speed(0.05, 28),
    Baseline(
        "jenga-prores", "Jenga-ProRes", _JENGA,
        FrescoConfig(
            nfe=23, stages=(11, 0, 12), selection="all", expansion="bilinear", transition="redraw", noise="fresh",
        ),
        row=(3, "Jenga-ProRes", None),
        deviations=("half the resolution per side at first, where Jenga takes three quarters", "the split is a guess"),
    ),
    _jit(18, (0.35, 0.62, 1.0), 4.24),
    _jit(11, (0.32, 0.6, 1.0), 7.07, "its settings make 7.14, 1.0 % more than the published 7.07"),
    _avits(30, (10, 9, 11)),
    _avits(18, (5, 9, 4)),
    _avits(9, (4, 2, 3)),
    _teacache(0.25, 26),
    _teacache(0.8, 12),
    _teacache(1.6, 7),
    _taylorseer(3, 2, "the published TFLOPs are 17.75 forwards, which no interval makes; 18 are computed here"),
    _taylorseer(4, 1),
    _taylorseer(9, 2),
    Baseline(
        "first-block-0.08", "FirstBlockCache, threshold 0.08", _FIRST_BLOCK, FrescoConfig.full(50), cache=FirstBlock(0.08),
        deviations=("on models that are no FLUX transformer the state stands for the first block's residual",),
    ),
    _combination(
        "fresco-taylorseer", "Fresco + TaylorSeer", FrescoConfig.paper(30), (4, "Fresco + TaylorSeer", None),
        cache=TaylorSeer(4, 1, inside=False),
        deviations=("x0 is forecast on the fine canvas, which outlives promotions; features would be forgotten at each",),
    ),
    _combination(
        "fresco-lite", "Fresco + FLUX.1-lite-8B", FrescoConfig.paper(11), (4, "Fresco + FLUX.1-lite-8B", None),
        checkpoint="flux-lite",
    ),
    _combination(
        "fresco-schnell-9", "Fresco + schnell, NFE 9", FrescoConfig.paper(9), (2, "schnell + Fresco", 9),
        checkpoint="flux-schnell",
    ),
    _combination(
        "fresco-schnell-4", "Fresco + schnell, NFE 4", FrescoConfig.paper(4), (2, "schnell + Fresco", 4),
        checkpoint="flux-schnell",
    ),
)  # fmt: skip

CATALOGUE: dict[str, Baseline] = {baseline.name: baseline for baseline in _ALL}
"""Name -> baseline."""


def find(name: str) -> Baseline:
    """Return a baseline by name.

    Raises:
        FrescoError: on an unknown name.
    """
    if name not in CATALOGUE:
        raise FrescoError(f"baseline is {name!r}, which is not known; choose one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def report(name: str, size: str | Sequence[int] = (1024, 1024)) -> dict[str, Any]:
    """Return what a baseline costs on the checkpoint it was published for, beside what was published; JSON-able.

    `off` is the relative difference; where it is not meant to be small, `open` says why.

    Raises:
        FrescoError: on an unknown name, a size that is not whole tokens, or costs that depend on the picture alone.
    """
    baseline = find(name)
    shape = baseline.shape()
    full, coarse = cost.token_grid(shape, size)
    flops = math.fsum(baseline.flops(shape, coarse, full)) / 1e12
    reference = cost.REFERENCE_STEPS * dataclasses.replace(cost.SHAPES["flux-dev"], text_tokens=_texts(baseline)).flops(full)
    known = baseline.published_tflops(reference / 1e12)
    return {
        "baseline": name, "title": baseline.title, "source": baseline.source, "model": baseline.checkpoint,
        "nfe": baseline.config.nfe, "tflops": flops, "speedup_reference": reference / 1e12 / flops,
        "tflops_published": known, "off": None if known is None else flops / known - 1, "open": baseline.open,
        "deviations": list(baseline.deviations),
    }  # fmt: skip


def _texts(baseline: Baseline) -> int:
    """Return the text tokens of the 50 full FLUX.1-dev steps that a speed-up was published against."""
    return baseline.text_tokens or cost.SHAPES["flux-dev"].text_tokens


def _uniform(**changes: Any) -> FrescoConfig:
    """Return 8 calls on the coarse grid and 10 on the fine one: the cost of 12 at full resolution."""
    return FrescoConfig(nfe=18, stages=(8, 0, 10), selection="all", **changes)


def equal_cost(
    stationary: bool = True, teacache: float = 0.17, first_block: float = 0.17
) -> dict[str, tuple[FrescoConfig, Cache | None]]:
    """Return every method at the cost of about 12 full-resolution calls, counted in tokens.

    Steps and thresholds are scaled to that cost. "field": the same with the coherent field in place of fresh noise.

    Args:
        stationary: for the oracle, whose field has no easy regions: what looks at the picture goes in random order
            (METHOD 2.4). False is every method's own order.
        teacache, first_block: thresholds; those given here make 12 of 50 calls on the oracle.
    """
    order = {"selection": "random"} if stationary else {}
    ralu = CATALOGUE["ralu-18"].config.replace(**order)
    bottleneck = CATALOGUE["bottleneck-30"].config.replace(nfe=18, head=3, stages=(8, 0, 7))
    speed = _uniform(transition="renoise", noise="fresh", switch=(0.7,))
    jenga = _uniform(transition="redraw", noise="fresh", expansion="bilinear")
    paper = FrescoConfig.paper(20, stages=(8, 4, 8), **order)
    return {
        "full resolution, 12 steps": (FrescoConfig.full(12), None),
        "Fresco (paper)": (paper, None),
        "Fresco, fresh noise": (paper.replace(noise="fresh"), None),
        "Fresco (recommended)": (
            FrescoConfig.recommended(19, stages=(7, 7, 5), **order), None,
        ),
        "Bottleneck": (bottleneck, None),
        "Bottleneck, field": (bottleneck.replace(transition="renoise_x0", noise="field"), None),
        "RALU": (ralu, None),
        "RALU, field": (ralu.replace(noise="field"), None),
        "SPEED": (speed, None),
        "SPEED, field": (speed.replace(noise="field"), None),
        "Jenga-ProRes": (jenga, None),
        "Jenga-ProRes, field": (jenga.replace(noise="field"), None),
        "JiT": (FrescoConfig.full(18), Sparse()),
        "AViTS": (CATALOGUE["avits-18"].config.replace(nfe=20, stages=(5, 9, 6), **order), None),
        "TeaCache": (FrescoConfig.full(50), TeaCache(teacache)),
        "FirstBlockCache": (FrescoConfig.full(50), FirstBlock(first_block)),
        "TaylorSeer, N = 4": (FrescoConfig.full(46), TaylorSeer(4, 1)),
        "Fresco + TaylorSeer, N = 2": (
            FrescoConfig.paper(40, stages=(16, 8, 16), **order), TaylorSeer(2, 1, inside=not stationary),
        ),
    }  # fmt: skip
