"""Fresco by diffusers' own door for other people's pipelines; this file is all that it needs, with Fresco on the path.

    pipe = DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", custom_pipeline="fresco/custom_pipeline.py")
    image = pipe("a fox", num_inference_steps=18).images[0]
    image = pipe("a fox", num_inference_steps=18, fresco={"transition": "rewind", "ratio": 0.4}).images[0]

Nothing of `FluxPipeline` is copied: its own call runs, as in `fresco.enable`. Source: DESIGN 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import FluxPipeline

from fresco.config import FrescoConfig
from fresco.plugin import call, check


class FrescoFluxPipeline(FluxPipeline):  # type: ignore[misc]  # diffusers is untyped
    """`FluxPipeline` whose call takes two arguments more; `fresco.last_trace(pipe)` gives the trace of the last one."""

    def __call__(
        self, *args: Any, fresco: FrescoConfig | Mapping[str, Any] | None = None, cached: str = "reset", **kwargs: Any
    ) -> Any:
        """Make pictures as `FluxPipeline.__call__` does, by Fresco.

        Args:
            args, kwargs: as there.
            fresco: the settings, as `FrescoConfig` or its JSON; None is `FrescoConfig.recommended()`, and
                `FrescoConfig.full()` is the stock call, bit for bit.
            cached: what a feature cache does at a promotion; see `fresco.enable`.

        Raises:
            FrescoError: on settings that are out of range, or that the call decides.
        """
        config = FrescoConfig.recommended() if fresco is None else fresco
        config = config if isinstance(config, FrescoConfig) else FrescoConfig.from_json(dict(config))
        check(self, config, cached)
        return call(self, FluxPipeline.__call__, config, cached, args, kwargs)
