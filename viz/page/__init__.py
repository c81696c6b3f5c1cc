"""The page: words and Gradio layouts, the only place in viz/ that knows gradio. It knows no model: app.py passes handlers in.

words: what is said, and the scripts around the viewer (no gradio). controls: the controls' values and what they mean (no
gradio). studio: controls and viewer. lab: the tabs for people who explore rather than watch.
"""

from viz.page.words import JS, VIEWER

__all__ = ["JS", "VIEWER"]
