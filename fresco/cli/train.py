"""Make the bundled model: download, render, train, export; run again to go on."""

from fresco.training.cli import add_arguments
from fresco.training.cli import train as run

__all__ = ["add_arguments", "run"]
