"""Write recorded runs as one HTML file, or as a static site that is free to host."""

from __future__ import annotations

import argparse
from typing import Any

# The command line is a place where parts are wired, as app.py is: here alone the library's package meets the viewer.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    from viz import export

    export.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write what was asked for; return {file: MB}."""
    from viz import export

    return export.run(args)
