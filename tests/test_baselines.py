"""Every baseline: its published FLOPs, its formulas against slow ones, and what it does on the oracle. Source: METHOD 3."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fresco
from fresco import published, run
from fresco.__main__ import main
from fresco.backends import oracle
from fresco.backends.flow import FlowSchedule
from fresco.backends.oracle import IdentityNoise, OracleDenoiser, OracleModel
from fresco.baselines import CATALOGUE, equal_cost, find, flux_power, report, spectral_switch, token_counts
from fresco.caching import Cache, FirstBlock
from fresco.config import FrescoConfig
from fresco.cost import SHAPES
from fresco.denoiser import AttentionDenoiser, Conditioning
from fresco.expansion import EXPANSIONS, lanczos
from fresco.grid import TokenGrid
from fresco.noise import NoiseField
from fresco.record import full_step
from fresco.sampler import sample
from fresco.schedule import Check
from fresco.selection import Scene, select
from fresco.tokens import Layout
from fresco.transition import TRANSITIONS, Path, Switch
from tests import oracles
from tests.test_grid import grown, keys_of
from tests.test_tokens import normal
from tests.tiny_flux import tiny_flux

COND = Conditioning("")
SMALL = OracleModel(shape=(1, 12, 12))


# ------------------------------------------------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("name", [n for n, b in CATALOGUE.items() if (b.published or b.speedup) and n != "jenga-prores"])
def test_a_published_row_is_met_within_a_percent_or_says_why_not(name: str) -> None:
    found = report(name)
    assert found["tflops_published"] is not None
    if not found["open"]:
        assert abs(found["off"]) < 0.01, found


@pytest.mark.parametrize(
    ("name", "tflops", "within"),
    [
        ("ralu-18", 904.98, 0.002), ("taylorseer-4", 967.91, 1e-4), ("taylorseer-9", 596.0, 1e-4),
        ("teacache-0.8", 892.35, 0.002), ("fresco-18", 788.03, 0.001), ("full-50", 3719.50, 1e-4), ("ralu-10", 541.0, 0.006),
    ],
)  # fmt: skip
def test_the_rows_by_number(name: str, tflops: float, within: float) -> None:
    assert report(name)["tflops"] == pytest.approx(tflops, rel=within)
    assert report(name)["open"] == ""


def test_the_teacache_rows_are_whole_numbers_of_published_forwards() -> None:
    full = SHAPES["flux-dev"].flops(4096) / 1e12
    for name, count in (("teacache-0.25", 26), ("teacache-0.8", 12), ("teacache-1.6", 7)):
        row = find(name).published
        assert row is not None
        assert round(row.published["tflops"] / full, 1) == count == find(name).computed


def test_every_method_of_the_papers_table_stands_in_the_catalogue() -> None:
    """All rows of Table 1 but RALU at NFE 30, whose steps per stage are not published."""
    have = {b.row for b in CATALOGUE.values()}
    missing = [
        (r.table, r.method, r.nfe) for r in published.ROWS if r.table in (1, 2, 4) and (r.table, r.method, r.nfe) not in have
    ]
    assert missing == [(1, "RALU", 30)]


def test_jit_meets_its_published_speedup_with_the_text_length_of_its_code() -> None:
    """4.24 times fewer FLOPs is what 256 text tokens make; 512, the usual length, make 4.14."""
    assert report("jit-18")["speedup_reference"] == pytest.approx(4.24, abs=0.005)
    shape = SHAPES["flux-dev"]
    costs = CATALOGUE["jit-18"].flops(shape, 1024, 4096)
    assert [round(c / 1e12, 2) for c in costs[:1]] == [round(shape.flops(int(0.35 * 4096)) / 1e12, 2)]
    assert 50 * shape.flops(4096) / sum(costs) == pytest.approx(4.14, abs=0.005)


@pytest.mark.parametrize("name", [n for n, b in CATALOGUE.items() if b.config.nfe <= 30 and b.cache is None])
def test_token_counts_are_those_of_the_run(name: str) -> None:
    """What cost is computed from, against the sampler itself on a 16 x 16 grid."""
    config = CATALOGUE[name].config
    model = oracles.PatternDenoiser((1, 8, 8))
    tokens = [len(s.grid) for s in sample(model, COND, config)]
    assert token_counts(config, 16, 64) == tokens


def test_costs_that_depend_on_the_picture_are_not_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="depends on the picture"):
        report("first-block-0.08")
    with pytest.raises(ValueError, match="with a ratio"):
        token_counts(FrescoConfig(tau=0.1), 16, 64)
    with pytest.raises(ValueError, match="ralu-18"):
        find("ralu")
    assert main(["cost", "--baseline", "taylorseer-4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tflops"] == pytest.approx(967.84, abs=0.01)
    assert main(["cost", "--baseline", "nobody"]) == 2


# ---------------------------------------------------------------------------------------------------------- formulas


def switch_of(z: float, sigma: float, noise: IdentityNoise, grid: TokenGrid, mask: np.ndarray) -> Switch:
    """Return a switch whose clean estimate is one constant and whose noise is the start's, as columns."""
    grid_next, parent = grid.expand(mask)
    x = sigma * torch.tensor(noise.at(grid))
    return Switch(
        sigma=sigma, x=x, x0=torch.zeros_like(x), grid=grid, grid_next=grid_next, parent=torch.tensor(parent),
        mask=torch.tensor(mask), noise=noise, coherent=False, expansion=EXPANSIONS["hadamard_token"],
        layout=Layout(noise.columns, 1), path=Path(), landing=z,
    )  # fmt: skip


@pytest.mark.parametrize(("z", "e"), [(6.317, 0.3), (6.317, 0.45), (6.261, 0.2), (2.0, 0.3), (3.0, 0.7)])
def test_ralu_is_its_published_matching(z: float, e: float) -> None:
    """Law: a up(z) + sigma' n' with a = 1 / (Z(1-e)+e), sigma' = 1 - e a, and Cov(n') = I - 1/Z^2 within each block.

    The covariances are read off exactly: every unit of noise is a column of its own. `e` is the clean fraction.
    """
    grid = TokenGrid.uniform((1, 4, 4), 1, 0)
    noise = IdentityNoise(grid, draws=3)
    mask = np.array([True, False, True, True])
    out, after = TRANSITIONS["renoise"](switch_of(z, 1 - e, noise, grid, mask))
    a = 1 / (z * (1 - e) + e)
    sigma = 1 - e * a
    assert after == pytest.approx(sigma, abs=1e-12)
    # sigma' = e / (Z(1-e)+e) in RALU's letters, where e counts from noise to picture
    assert 1 - after == pytest.approx(e / (z * (1 - e) + e), abs=1e-12)
    start, fresh = out.numpy()[:, :16], out.numpy()[:, 16:]
    covariance = fresh @ fresh.T
    keys = keys_of(grid.expand(mask)[0])
    for i, j in itertools.product(range(len(keys)), repeat=2):
        same, siblings = i == j, keys[i][0] == keys[j][0] == 1 and oracles.ancestor(keys[i], 0) == oracles.ancestor(keys[j], 0)
        kept = same * (sigma**2 - (a * (1 - e)) ** 2)  # a kept token: the right variance in all
        wanted = sigma**2 * (same - siblings / z**2) if keys[i][0] == 1 else kept
        assert covariance[i, j] == pytest.approx(wanted, abs=1e-6), (keys[i], keys[j])
    parents = np.array([oracles.ancestor(k, 0)[2] * 2 + oracles.ancestor(k, 0)[3] for k in keys])
    field = IdentityNoise(grid).at(grid)
    assert np.allclose(start, a * (1 - e) * field[parents], atol=1e-6)
    total = out.numpy() @ out.numpy().T
    assert np.allclose(total, sigma**2 * np.eye(len(keys)), atol=1e-6)  # white: what the correlation is for


def test_a_higher_landing_of_the_field_is_still_the_flow_state() -> None:
    """Law: with the coherent field, any landing on a straight path gives (1-s') up(x0) + s' n' exactly."""
    for expansion, z in itertools.product(("hadamard", "hadamard_token"), (2.0, 4.5)):
        grid, _ = grown((1, 5, 7), 1, 3, rounds=0)
        layout, field = Layout(2, 2), NoiseField(5, 2, 2)
        mask = np.arange(len(grid)) % 3 != 0
        grid_next, parent = grid.expand(mask)
        x0 = normal(len(grid), 8, seed=1)
        x = 0.45 * x0 + 0.55 * torch.tensor(field.at(grid))
        switch = Switch(
            0.55, x, x0, grid, grid_next, torch.tensor(parent), torch.tensor(mask), field, True, EXPANSIONS[expansion],
            layout, Path(), landing=z,
        )  # fmt: skip
        out, after = TRANSITIONS["renoise"](switch)
        assert after / (1 - after) == pytest.approx(z * 0.55 / 0.45)
        if expansion == "hadamard":
            expected = (1 - after) * switch.spread() + after * torch.tensor(field.at(grid_next))
            assert torch.allclose(out, expected, atol=1e-9)


def test_lanczos_is_pillows_up_and_down() -> None:
    """Law: the kernel, its widening and its border, against Pillow's own resize in 32 bits."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((12, 18)).astype(np.float32)
    for scale, rows, cols in ((0.5, 24, 36), (2.0, 6, 9), (1.0, 12, 18)):
        got = lanczos(torch.tensor(image), rows, cols, scale).numpy()
        expected = np.asarray(Image.fromarray(image).resize((cols, rows), Image.Resampling.LANCZOS))
        assert np.abs(got - expected).max() < 1e-5


def test_going_down_is_the_estimate_made_small_under_coarse_noise() -> None:
    """Law: Bottleneck's way down, on a run of its own: Pillow makes x0 small, the noise is drawn afresh."""
    config = FrescoConfig(nfe=8, head=3, stages=(2, 0, 3), selection="all", expansion="lanczos", transition="restart", seed=2)
    model = oracles.PatternDenoiser((1, 8, 12))
    source = oracles.Recorded(NoiseField(2, 1, 1), 1, 1)
    steps = list(sample(model, COND, config, noise=source))
    down = steps[2]
    assert [len(s.grid) for s in steps] == [96] * 3 + [24] * 2 + [96] * 3
    layout = Layout(1, 1)
    x0 = layout.unpack(down.x0, down.grid)[0, 0].numpy()
    small = np.asarray(Image.fromarray(x0).resize((6, 4), Image.Resampling.LANCZOS))
    sigma = down.sigma_next
    before = model.sigmas(8, 96)[3]
    assert sigma == pytest.approx(before / (2 - before))
    unit = np.array(source.draws[1][1]).reshape(-1)
    got = layout.unpack(down.x_next, down.grid_next)[0, 0].numpy()
    noise = layout.unpack(torch.tensor(unit)[:, None], down.grid_next)[0, 0].numpy()
    assert np.allclose(got, (1 - sigma) * small + sigma * noise, atol=1e-5)
    assert [s.stage for s in steps] == ["full"] * 3 + ["low"] * 2 + ["full"] * 3


def test_redraw_goes_on_at_the_next_sigma_with_the_estimate_under_new_noise() -> None:
    """Law: Jenga's step, z' = (1-s) up(x0) + s eps with s the next sigma, against Pillow's bilinear in a whole run."""
    config = CATALOGUE["jenga-prores"].config.replace(nfe=7, stages=(3, 0, 4), noise="field", seed=5)
    steps = list(sample(oracles.PatternDenoiser((1, 8, 12)), COND, config))
    jump = steps[2]
    assert jump.sigma_next == oracles.PatternDenoiser((1, 8, 12)).sigmas(7, 96)[3]
    layout = Layout(1, 1)
    big = np.asarray(
        Image.fromarray(layout.unpack(jump.x0, jump.grid)[0, 0].numpy()).resize((12, 8), Image.Resampling.BILINEAR)
    )
    noise = torch.tensor(NoiseField(5, 1, 1).at(jump.grid_next))
    expected = (1 - jump.sigma_next) * big + jump.sigma_next * layout.unpack(noise, jump.grid_next)[0, 0].numpy()
    assert np.allclose(layout.unpack(jump.x_next, jump.grid_next)[0, 0].numpy(), expected, atol=1e-5)


def test_speed_switches_where_flux_s_spectrum_says() -> None:
    """Law: 18 and 28 of 50 steps are coarse for delta .01 and .05; the lambdas of METHOD 2.2 are this spectrum's."""
    assert [round(flux_power(f), 2) for f in (32, 48, 64)] == [0.27, 0.12, 0.07]
    dev = FlowSchedule({"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15})
    sigmas = dev.sigmas(50, 4096)
    for delta, low in ((0.01, 18), (0.05, 28)):
        switch = spectral_switch(flux_power(32), delta)
        assert ((1 - switch) / switch) ** 2 * flux_power(32) == pytest.approx(delta)
        assert max(i for i, s in enumerate(sigmas) if s > switch) == low
        assert CATALOGUE[f"speed-{delta:g}"].config.stages == (low, 0, 50 - low)


def test_the_score_of_attention_and_variance_takes_the_highest_first() -> None:
    """Law: AViTS, a attention + (1-a) variance, each from 0 to 1 over the tokens that may still grow."""
    grid, _ = TokenGrid.uniform((1, 12, 12), 1, 0).expand(np.arange(36) % 4 == 1)
    model = oracles.PatternDenoiser((1, 12, 12))
    attention = model.attention(grid).double().numpy()
    variance = np.random.default_rng(0).random(len(grid)) * 7
    config = FrescoConfig(selection="attention_variance", ratio=0.7)
    chosen = select(config, Check(0, (0.7,)), Scene(grid, variance, torch.zeros(len(grid), 1), Layout(1, 1), model, 0)).mask
    open_ = [i for i in range(len(grid)) if grid.level[i] == 0]

    def scaled(values: np.ndarray, i: int) -> float:
        low, high = (bound(values[k] for k in open_) for bound in (min, max))
        return float((values[i] - low) / (high - low))

    ranked = sorted(open_, key=lambda i: -0.5 * scaled(attention, i) - 0.5 * scaled(variance, i))
    assert len(open_) == 27
    assert set(np.flatnonzero(chosen)) == set(ranked[: math.floor(0.7 * 36) - 9])
    undefined = Scene(grid, variance * np.nan, torch.zeros(len(grid), 1), Layout(1, 1), model, 0)
    assert not select(config, Check(0, (0.7,)), undefined).mask.any()


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_runs_on_the_oracle_and_says_what_it_spent(name: str) -> None:
    """A finite picture; FLOPs by the trace are those of the calls that were made, and below those of full resolution."""
    baseline = CATALOGUE[name]
    model, config = baseline.model(SMALL), baseline.on(SMALL)
    trace = run(model, "", config, preview_every=0)
    assert len(trace.events) == config.nfe
    assert trace.picture is not None
    assert trace.picture.shape == (1, 12, 12, 3)
    assert 0 < trace.picture.std() < 128
    whole = config.nfe * full_step(model, config)
    assert trace.flops == whole if config.is_full and baseline.cache is None else trace.flops < 0.95 * whole
    assert trace.provenance["weights"].endswith(name if baseline.cache else SMALL.provenance)


def test_a_model_without_attention_is_scored_by_variance_alone() -> None:
    avits = CATALOGUE["avits-18"]
    assert not isinstance(SMALL.bind(avits.config), AttentionDenoiser)
    assert avits.on(SMALL).selection == "variance_high"
    assert avits.on(SMALL).replace(selection="attention_variance") == avits.config


FAMILIES = {"RALU": 20, "SPEED": 20, "Jenga-ProRes": 20, "Bottleneck": 20}


@pytest.fixture(scope="module")
def laws() -> dict[str, dict[str, float]]:
    """Return the exact law of every method at the cost of 12 full steps."""
    return {n: oracle.law(c, (1, 12, 12), wrap=k.wrap if k else None) for n, (c, k) in equal_cost().items()}


def test_all_cost_the_same(laws: dict[str, dict[str, float]]) -> None:
    for name, row in laws.items():  # thresholds were set on 16 x 16; here they may be a call off
        assert row["cost"] == pytest.approx(12, abs=1.01 if "Cache" in name else 0.3), name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_unified_field_beats_fresh_noise_in_every_method(name: str, laws: dict[str, dict[str, float]]) -> None:
    """Law: Proposition 1 in each peer: the same-seed distance falls manyfold, and the marginal law is no worse."""
    fresh, field = laws[name], laws[f"{name}, field"]
    assert fresh["distance"] > FAMILIES[name] * field["distance"]
    assert field["frechet"] < 1.001 * fresh["frechet"]
    assert fresh["distance"] > 0.4
    assert field["distance"] < 0.06


def test_what_the_oracle_says_of_the_others(laws: dict[str, dict[str, float]]) -> None:
    """Law: the order of the peers in the marginal law, against full resolution at the same cost."""
    full = laws["full resolution, 12 steps"]
    for better in ("Fresco (paper)", "SPEED", "TaylorSeer, N = 4", "Fresco + TaylorSeer, N = 2", "AViTS"):
        assert laws[better]["frechet"] < full["frechet"], better
    for worse in ("Bottleneck", "Jenga-ProRes", "JiT", "TeaCache", "FirstBlockCache", "RALU"):
        assert laws[worse]["frechet"] > full["frechet"], worse
    assert laws["Fresco + TaylorSeer, N = 2"]["frechet"] < laws["Fresco (paper)"]["frechet"]
    assert laws["Fresco (paper)"]["distance"] < full["distance"] < laws["JiT"]["distance"]


def test_the_oracle_sees_a_sparse_set_exactly() -> None:
    """Law: E[eps - x0 | the seen tokens alone], by conditioning the joint Gaussian, on a set that leaves cells out."""
    shape, sigma = (1, 4, 6), 0.6
    fine = TokenGrid.uniform(shape, 1, 1)
    seen = np.arange(24) % 3 == 0
    few = TokenGrid(shape, 1, fine.level[seen], fine.coord[seen])
    truth = oracle.covariance(4, 6, 1.25)[np.ix_(seen, seen)]
    z = (1 - sigma) ** 2 * truth + sigma**2 * np.eye(8)
    expected = (sigma * np.eye(8) - (1 - sigma) * truth) @ np.linalg.inv(z)
    got = OracleDenoiser(shape)(torch.eye(8), few, sigma, COND).numpy()
    assert np.allclose(got, expected, atol=1e-5)


def test_a_pipeline_says_that_it_cannot_go_down() -> None:
    """High-low-high runs in `fresco.run` only; the call is refused in one sentence, not drawn wrongly."""
    pipe = tiny_flux()
    with (
        fresco.enable(pipe, CATALOGUE["bottleneck-30"].config.replace(nfe=9, head=2, stages=None)),
        pytest.raises(ValueError, match="use head 0"),
    ):
        pipe("a", height=32, width=32, num_inference_steps=9)


@pytest.mark.parametrize("name", ["ralu-10", "jit-11", "avits-9", "fresco-schnell-4"])
def test_each_kind_runs_on_sinopia(name: str, sinopia: Any) -> None:
    """At a quarter of its native tokens, so that it is quick."""
    baseline = CATALOGUE[name]
    config = baseline.on(sinopia)
    assert config == baseline.config  # sinopia reports its attention
    trace = run(baseline.model(sinopia), "a red fox", config.replace(size=half(sinopia)), preview_every=0)
    assert trace.picture is not None
    assert trace.picture.std() > 5


@pytest.mark.parametrize(
    ("name", "cache"),
    [("teacache-0.8", None), ("taylorseer-4", None), ("first-block-0.08", FirstBlock(0.6)), ("fresco-taylorseer", None)],
)
def test_caches_run_on_sinopia_and_skip_calls(name: str, cache: Cache | None, sinopia: Any) -> None:
    """With the published threshold or interval; a first block needs more, so few steps lie far apart."""
    baseline = dataclasses.replace(CATALOGUE[name], cache=cache or CATALOGUE[name].cache)
    config = baseline.config.replace(nfe=8, size=half(sinopia))
    trace = run(baseline.model(sinopia), "a red fox", config, preview_every=0)
    whole = sum(sinopia.bind(config).flops(len(e.grid)) for e in trace.events)
    assert 0.1 * whole < trace.flops < 0.9 * whole
    assert trace.picture is not None
    assert trace.picture.std() > 5


def half(model: Any) -> tuple[int, int, int]:
    """Return half a model's native sides."""
    frames, height, width = model.native_size
    return frames, height // 2, width // 2


@pytest.fixture(scope="module")
def sinopia() -> Any:
    """Return the bundled model."""
    from fresco import load_model

    return load_model("sinopia", device="cpu")
