"""The lab: what is measured around the sampler. Plain dataclasses and NumPy out; no page in here.

`sweep` runs grids of settings, `ablation` names the paper's switches, `proposition`, `convergence` and `parts` look at one
run closely, `evaluate` measures over prompts and seeds, `tables` sets the paper's numbers beside ours.
"""
