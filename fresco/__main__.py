"""`python -m fresco`: the library from a shell. Every command takes --json for programs."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour costs 10x otherwise

import argparse
import json
import sys
from collections.abc import Sequence

from fresco.cli import check, cost, evaluate, export, generate, oracle, show, sweep, tables, train
from fresco.errors import FrescoError

COMMANDS = (generate, sweep, evaluate, tables, oracle, cost, check, export, train)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fresco", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        about = (command.__doc__ or "").replace("%", "%%")
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=command.run, view=getattr(command, "view", show.pairs))
        command.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        found = args.run(args)
    except FrescoError as error:
        print(f"fresco: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fresco: stopped", file=sys.stderr)
        return 130
    if not args.json:
        args.view(found)
    elif found:  # of several processes only the first has something to say
        print(json.dumps(found))
    return 0 if found.get("well", True) else 1


if __name__ == "__main__":
    sys.exit(main())
