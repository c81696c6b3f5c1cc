"""Fresco: see and steer how a diffusion transformer spends its compute.

A training-free sampler that sketches at low resolution, watches each token's variance over time and expands only
converged tokens, with one coordinate-bound noise field for all resolutions. Public names load lazily (PEP 562), so that
`import fresco` costs nothing and viewers need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "sample": "fresco.sampler",
    "run": "fresco.record",
    "FrescoConfig": "fresco.config",
    "TokenGrid": "fresco.grid",
    "NoiseField": "fresco.noise",
    "Trace": "fresco.trace",
    "load_model": "fresco.backends",
    "enable": "fresco.plugin",
    "disable": "fresco.plugin",
    "last_trace": "fresco.plugin",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fresco' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
