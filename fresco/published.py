"""Numbers that others published, each with its source; nothing here was measured by this project. Standard library only.

The paper is arXiv 2601.07462; its sibling AViTS (2026) measured it and its peers again, on FLUX.1-dev at 1024 x 1024 with
DrawBench's 200 prompts on an A800. Quantities: `latency` and `flops`, times faster or cheaper than 50 full steps; `tflops`;
`image_reward`, `clip`, `clip_iqa`, `vbench`. Source: METHOD 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OWN = "arXiv 2601.07462"
SIBLING = "AViTS, 2026"
QUANTITIES = ("latency", "flops", "tflops", "image_reward", "clip", "clip_iqa", "vbench")
TITLES = {
    1: "FLUX.1-dev, 1024 x 1024, DrawBench-200",
    2: "FLUX.1-schnell",
    3: "HunyuanVideo, VBench",
    4: "Combinations on FLUX.1",
    5: "Ablation at NFE 18",
}


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        table: a key of TITLES. method: as it is called there. nfe: model calls, where stated.
        published: quantities in the paper. remeasured: quantities in its sibling.
        source: who says so.
    """

    table: int
    method: str
    nfe: int | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    remeasured: Mapping[str, float] = field(default_factory=dict)
    source: str = f"{OWN}; {SIBLING}"


def _row(
    method: str, nfe: int, latency: float, tflops: float, flops: float, again: float, clip: float | None = None,
    own: float | None = None,
) -> Row:  # fmt: skip
    cost = {"latency": latency, "flops": flops, "tflops": tflops}
    published = cost | ({} if own is None else {"image_reward": own})
    remeasured = {"image_reward": again} | ({} if clip is None else {"clip": clip})
    return Row(1, method, nfe, published, remeasured)


def _ablation(method: str, latency: float, image_reward: float, clip: float) -> Row:
    return Row(5, method, 18, {"latency": latency, "image_reward": image_reward, "clip": clip}, source=OWN)


ROWS: tuple[Row, ...] = (
    _row("full resolution", 50, 1.00, 3719.50, 1.00, 0.9719, 32.325, 0.9736),
    _row("full resolution", 30, 1.55, 2231.70, 1.67, 0.9646, 32.232),
    _row("full resolution", 18, 2.61, 1339.02, 2.77, 0.9553, 32.114),
    _row("TeaCache 0.25", 50, 1.83, 1937.0, 1.92, 0.9442),
    _row("TeaCache 0.8", 50, 3.89, 892.35, 4.17, 0.8805),
    _row("TeaCache 1.6", 50, 6.82, 521.0, 7.15, 0.6423),
    _row("TaylorSeer N=3", 50, 2.61, 1320.0, 2.82, 0.9861),
    _row("TaylorSeer N=4", 50, 2.80, 967.91, 3.84, 0.9857),
    _row("TaylorSeer N=9", 50, 5.32, 596.0, 6.24, 0.8562),
    _row("Bottleneck Sampling", 30, 2.28, 1582.77, 2.35, 0.9721, 32.141, 0.9739),
    _row("RALU", 30, 2.34, 1500.0, 2.48, 0.9626),
    _row("RALU", 18, 4.07, 904.98, 4.11, 0.9481),
    _row("RALU", 10, 6.92, 541.0, 6.88, 0.9289),
    _row("Fresco", 30, 2.81, 1295.99, 2.87, 0.9801, 32.1, 1.0527),
    _row("Fresco", 18, 4.51, 788.03, 4.72, 0.9861, 32.0, 1.0369),
    _row("Fresco", 11, 7.52, 486.85, 7.64, 0.9366, 31.9),
    _row("AViTS", 30, 3.14, 1401.0, 2.65, 1.0104),
    _row("AViTS", 18, 5.45, 775.0, 4.80, 0.9959),
    _row("AViTS", 9, 9.78, 380.0, 9.78, 0.9201),
    Row(2, "schnell + Fresco", 9, {"tflops": 362.0, "flops": 10.27}, source=OWN),
    Row(2, "schnell + Fresco", 4, {"tflops": 168.0, "flops": 22.10}, source=OWN),
    Row(3, "HunyuanVideo", None, {"vbench": 80.12}, source=OWN),
    Row(3, "TeaCache", None, {"vbench": 78.96}, source=OWN),
    Row(3, "Jenga-ProRes", None, {"vbench": 79.16}, source=OWN),
    Row(3, "Fresco", 23, {"latency": 3.51, "flops": 3.91, "vbench": 81.10}, source=OWN),
    Row(3, "Fresco", 18, {"flops": 4.92, "vbench": 80.76}, source=OWN),
    Row(4, "Fresco + TaylorSeer", None, {"flops": 9.23, "clip_iqa": 0.9116}, source=OWN),
    Row(4, "Fresco + FLUX.1-lite-8B", None, {"flops": 10.03, "clip_iqa": 0.9518}, source=OWN),
    _ablation("random", 4.90, 0.9143, 31.28),
    _ablation("edge", 4.47, 0.9482, 32.32),
    _ablation("attention", 4.21, 0.9849, 32.32),
    _ablation("without unified noise", 4.13, 0.9632, 31.26),
    _ablation("interpolation", 4.63, 0.9876, 32.13),
    _ablation("full method", 4.51, 1.0369, 32.58),
)
"""All rows, table by table, in METHOD 1's order. schnell + Fresco's ImageReward, 0.9825, is published without its NFE."""
