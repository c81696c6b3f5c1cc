"""How the bundled model was made: data, scenes, training loop. The app never imports it; see `python -m fresco train`."""
