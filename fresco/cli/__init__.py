"""The commands of `python -m fresco`, one file each: `add_arguments(parser)`, `run(args) -> dict` and, for people, `view`."""
