"""How the tokens move when some of them are expanded. Source: METHOD 2.2; paper Eq. 4, Eq. 8.

All tokens share one sigma, so promoted and kept tokens must agree on it: `carry` stays where it is, the others land at
`2 sigma / (1 + sigma)`, where the exact expansion of a flow state lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fresco.denoiser import Noise
from fresco.errors import FrescoError
from fresco.expansion import EXPANSIONS, Expansion
from fresco.grid import Bools, TokenGrid
from fresco.schedule import expanded, fresh_weights, shift, transition_weights, unexpanded
from fresco.selection import History, place
from fresco.tokens import Layout


@dataclass
class Path:
    """The states a run went through, per token: what `rewind` moves kept tokens back along.

    Attributes:
        nodes: (sigma, x (N, D)) with falling sigma; a row is NaN above its token's promotion, where it has no history.
    """

    nodes: list[tuple[float, torch.Tensor]] = field(default_factory=list)

    def land(self, switch: Switch, sigma: float, x: torch.Tensor) -> None:
        """Follow a promotion: drop what lies at or below the landing, forget newborn tokens' past, add (sigma, x)."""
        born = switch.mask[switch.parent, None]
        past = [(above, value[switch.parent].masked_fill(born, torch.nan)) for above, value in self.nodes if above > sigma]
        self.nodes = [*past, (sigma, x)]

    def at(self, sigma: float) -> torch.Tensor:
        """Return the state (N, D) at sigma, linear between the stored nodes. Source: METHOD 2.2 (`rewind`).

        Raises:
            FrescoError: where sigma is above the first node.
        """
        for node, x in self.nodes:
            if abs(node - sigma) < 1e-9:  # a node itself: above it a token may have no state yet
                return x
        for (above, x_above), (below, x_below) in itertools.pairwise(self.nodes):
            if above > sigma > below:
                return torch.lerp(x_above, x_below, (above - sigma) / (above - below))
        raise FrescoError(f"the run has no state at sigma {sigma:.3f}; it began at {self.nodes[0][0]:.3f}")


@dataclass(frozen=True, eq=False)
class Switch:
    """Everything a transition may use, at the end of the Euler step.

    Attributes:
        sigma: where x lives.
        x, x0: (N, D) state and clean estimate.
        grid, grid_next: the tokens before and after; `parent` (N',) maps back.
        mask: (N,) bool tensor, tokens promoted.
        noise: where details and noise come from; `coherent` says that it is the field x started from.
        expansion: how a parent becomes children. layout: how a token is made of latent pixels.
        path: the states so far, newest last.
        detail_gain: lambda of METHOD 2.2; 0 is off.
        landing: how many times as high the noise-to-signal ratio is after the promotion; 2 is the exact expansion's.
    """

    sigma: float
    x: torch.Tensor
    x0: torch.Tensor
    grid: TokenGrid
    grid_next: TokenGrid
    parent: torch.Tensor
    mask: torch.Tensor
    noise: Noise
    coherent: bool
    expansion: Expansion
    layout: Layout
    path: Path
    detail_gain: float = 0.0
    landing: float = 2.0

    @property
    def landed(self) -> float:
        """Noise level after the promotion, where the transition raises it."""
        return shift(self.sigma, self.landing)

    @property
    def eps(self) -> torch.Tensor:
        """(N, D), the noise estimate: `x = (1-sigma) x0 + sigma eps`."""
        return (self.x - (1 - self.sigma) * self.x0) / max(self.sigma, 1e-12)

    def up(self, value: torch.Tensor) -> torch.Tensor:
        """Return (M, 4, D): a value of the parents at their children."""
        return self.expansion.up(value, self.grid, self.mask, self.layout)

    def high(self, sigma: float) -> torch.Tensor | float:
        """Return (M, 4, D): the unit high-pass noise under the parents, with the detail gain at sigma; 0 for none."""
        if self.expansion.high is None:
            return 0.0
        details = torch.as_tensor(self.noise.details(self.grid, self.mask.cpu().numpy())).to(self.x)
        gain = (1 + self.detail_gain * ((1 - sigma) / sigma) ** 2) ** 0.5 if sigma > 0 else 1.0
        return gain * self.expansion.high(details, self.layout)

    def put(self, kept: torch.Tensor, children: torch.Tensor) -> torch.Tensor:
        """Return (N', D) from kept tokens (N, D) and children (M, 4, D)."""
        return place(kept, children, self.mask, self.grid_next, self.parent)

    def spread(self) -> torch.Tensor:
        """Return (N', D): the clean estimate on the next grid."""
        return self.put(self.x0, self.up(self.x0))

    def unit_noise(self) -> torch.Tensor:
        """Return (N', D): unit noise on the next grid."""
        return torch.as_tensor(self.noise.at(self.grid_next)).to(self.x)

    def weights(self, sigma: float) -> tuple[float, float]:
        """Return (beta, alpha) of Eq. 4: the field's eps adds linearly, fresh eps is independent and adds in variance."""
        return (transition_weights if self.coherent else fresh_weights)(self.sigma, sigma)

    def exact(self) -> torch.Tensor:
        """Return (M, 4, D): the exact expansion, a flow state at `landed`. Source: METHOD 2.1.

        The parent spreads with weight 1 / (1 + s), s its noise level; the details get the new sigma. To land higher than
        an expansion from where it is, the parent is first noised up to where the expansion lands there.
        """
        x, before = self.x, self.sigma
        if self.landing != 2:
            before = unexpanded(self.landed)
            beta, alpha = self.weights(before)
            x = beta * x + alpha * torch.as_tensor(self.noise.at(self.grid)).to(x)
        return self.up(x) / (1 + before) + self.landed * self.high(self.landed)


def carry(s: Switch) -> tuple[torch.Tensor, float]:
    """Keep sigma: children get the clean estimate and the noise estimate of their parent, plus details.

    `(1-sigma) up(x0) + sigma Haar^-1(eps, details)`; kept tokens are untouched. Source: METHOD 2.2.
    """
    noise = s.expansion.noise_gain() * s.up(s.eps) + s.high(s.sigma)
    return s.put(s.x, (1 - s.sigma) * s.up(s.x0) + s.sigma * noise), s.sigma


def rewind(s: Switch) -> tuple[torch.Tensor, float]:
    """Expand exactly; move kept tokens back along their own path to the same sigma. Source: METHOD 2.1, 2.2.

    Raises:
        FrescoError: where a kept token has no state at the landing, because it was promoted below it.
    """
    sigma = expanded(s.sigma)
    kept = s.path.at(sigma)
    if not torch.isfinite(kept[~s.mask]).all():
        raise FrescoError(
            f"transition 'rewind' from sigma {s.sigma:.3f} must go back to {sigma:.3f}, above where some token was "
            "promoted; look once (checks 1), make the mixed stage longer or switch at lower sigma, or use transition "
            "'renoise' or 'carry'"
        )
    return s.put(kept, s.exact()), sigma


def renoise(s: Switch) -> tuple[torch.Tensor, float]:
    """Expand exactly; re-noise kept tokens with `beta z + alpha eps`. Source: paper Eq. 4; METHOD 2.2.

    With fresh noise and a higher landing Z this is RALU's NT matching: `a up(z) + sigma' n`, `a = 1 / (1 + (Z-1) sigma)`,
    where n is correlated within each block so that the total is white. Source: RALU (arXiv 2507.08422).
    """
    sigma = s.landed
    beta, alpha = s.weights(sigma)
    everywhere = s.unit_noise()
    moved = beta * s.x[s.parent] + alpha * everywhere
    return torch.where(s.mask[s.parent, None], s.put(s.x, s.exact()), moved), sigma


def renoise_x0(s: Switch) -> tuple[torch.Tensor, float]:
    """Noise every clean estimate anew with the field: `(1-sigma') up(x0) + sigma' eps`. Source: METHOD 2.2."""
    sigma = s.landed
    return (1 - sigma) * s.spread() + sigma * s.unit_noise(), sigma


def restart(s: Switch) -> tuple[torch.Tensor, float]:
    """Do what others do: promoted tokens from the clean estimate, kept ones forward, all with fresh noise.

    Source: METHOD 2.2; RALU (arXiv 2507.08422), Bottleneck Sampling (arXiv 2503.18940), Jenga (arXiv 2505.16864).
    """
    sigma = s.landed
    beta, alpha = fresh_weights(s.sigma, sigma)
    fresh = s.unit_noise()
    promoted = (1 - sigma) * s.spread() + sigma * fresh
    return torch.where(s.mask[s.parent, None], promoted, beta * s.x[s.parent] + alpha * fresh), sigma


def redraw(s: Switch) -> tuple[torch.Tensor, float]:
    """Keep sigma: promoted tokens get their clean estimate under new noise, `(1-sigma) up(x0) + sigma eps`.

    Kept tokens are untouched. Source: Jenga's ProRes (arXiv 2505.16864), which goes on at the next sigma.
    """
    promoted = (1 - s.sigma) * s.spread() + s.sigma * s.unit_noise()
    return torch.where(s.mask[s.parent, None], promoted, s.x[s.parent]), s.sigma


TRANSITIONS: dict[str, Callable[[Switch], tuple[torch.Tensor, float]]] = {
    "carry": carry,
    "rewind": rewind,
    "renoise": renoise,
    "renoise_x0": renoise_x0,
    "restart": restart,
    "redraw": redraw,
}


@dataclass(frozen=True, eq=False)
class Promoter:
    """Expands tokens during one run: applies the transition and hands histories down.

    Attributes:
        transition, expansion: names in TRANSITIONS and EXPANSIONS.
        landing: as in Switch.
        layout, noise, coherent, detail_gain: as in `Switch`.
        history, path: the run's; both follow every promotion.
    """

    transition: str
    expansion: str
    landing: float
    layout: Layout
    noise: Noise
    coherent: bool
    detail_gain: float
    history: History
    path: Path

    def __call__(
        self, grid: TokenGrid, mask: Bools, sigma: float, x: torch.Tensor, x0: torch.Tensor
    ) -> tuple[TokenGrid, float, torch.Tensor, torch.Tensor]:
        """Return (grid, sigma, x, x0) after the masked tokens of (grid, sigma, x, x0) have become children."""
        grid_next, parent = grid.expand(mask)
        chosen, from_ = (torch.as_tensor(a, device=x.device) for a in (mask, parent))
        switch = Switch(
            sigma, x, x0, grid, grid_next, from_, chosen, self.noise, self.coherent, EXPANSIONS[self.expansion],
            self.layout, self.path, self.detail_gain, self.landing,
        )  # fmt: skip
        x_next, sigma_next = TRANSITIONS[self.transition](switch)
        self.history.expand(switch.mask, grid_next, switch.parent, self.layout)
        if self.path.nodes:  # kept for `rewind` alone
            self.path.land(switch, sigma_next, x_next)
        # With one level no token is left to promote from here, so nobody will ask for the estimate.
        return grid_next, sigma_next, x_next, switch.spread() if grid.levels > 1 else x0

    def shrink(self, grid: TokenGrid, coarse: TokenGrid, sigma: float, x0: torch.Tensor) -> torch.Tensor:
        """Return (N', D): the state at sigma on the coarse grid, `(1-sigma) down(x0) + sigma eps`; the past is forgotten.

        Args:
            grid: the finest grid, uniform. coarse: the coarsest.
            sigma: the noise level to land at.
            x0: (N, D) clean estimate.

        Source: Bottleneck Sampling (arXiv 2503.18940), high-low-high.
        """
        self.history.values, self.path.nodes = [], []
        latent = EXPANSIONS[self.expansion].down(self.layout.canvas(x0, grid), grid.levels, self.layout)
        clean = self.layout.gather_dense(latent, torch.as_tensor(coarse.coord))
        return (1 - sigma) * clean + sigma * torch.as_tensor(self.noise.at(coarse)).to(x0)
