"""What is loaded with what: viewers need no torch, the library no page. Each in a fresh interpreter. Source: DESIGN 1."""

import subprocess
import sys
from pathlib import Path

import pytest

import fresco

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fresco", ["torch", "numpy", "gradio", "matplotlib", "diffusers"]),
        ("import viz.frame, viz.bundle, viz.link, viz.page", ["torch", "gradio", "matplotlib", "diffusers", "transformers"]),
        ("import viz.figure", ["torch", "gradio", "matplotlib.pyplot"]),
        ("import fresco.trace, fresco.config, fresco.cost", ["torch", "gradio"]),
        ("from fresco import Trace, FrescoConfig, TokenGrid", ["torch", "gradio"]),
        ("import fresco.record, fresco.sampler, fresco.__main__", ["gradio", "diffusers", "transformers", "viz", "matplotlib"]),
        ("from fresco import load_model; load_model('oracle')", ["gradio", "diffusers", "transformers", "viz"]),
        ("import fresco.backends.sinopia", ["gradio", "viz"]),
    ],
)
def test_nothing_loads_what_it_does_not_need(statement, absent):
    code = f"import sys; {statement}; print(*[m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("first", ["", "import fresco.record, fresco.sampler; "])
def test_public_names_are_what_they_say_however_often_they_are_asked_for(first):
    """A submodule of the same name must not take a function's place once it is loaded."""
    code = f"{first}import fresco; print(*[type(getattr(fresco, n)).__name__ for _ in (1, 2) for n in sorted(fresco.__all__)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    kinds = {"FrescoConfig": "type", "NoiseField": "type", "TokenGrid": "type", "Trace": "type"}
    assert done.stdout.split() == [kinds.get(name, "function") for name in sorted(fresco.__all__)] * 2, done.stderr


def test_other_names_are_said_not_to_be():
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        fresco.paint  # noqa: B018
