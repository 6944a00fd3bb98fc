"""Explain networks of torchvision, timm and transformers as they come, and compare each with its reference.

    python -m benchmarks.zoo                      # all of them; writes docs/zoo.md
    python -m benchmarks.zoo --only resnet swin   # those with such a word in their name; prints a table
    python -m benchmarks.zoo --json zoo.json

One process, one network after the other; what goes wrong with one is a line of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: weights are random

import torch

from benchmarks._zoo_checks import Result, check
from benchmarks._zoo_entries import ZOO
from benchmarks._zoo_table import page, summary, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"


def main(arguments: list[str] | None = None) -> int:
    """Check what the command line asks for; return 1 if anything is neither right nor named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="networks with such a word in their name")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the libraries; relprop's are caught where they are asked for

    chosen = [entry for entry in ZOO if not options.only or any(word in entry.title for word in options.only)]
    if not chosen:
        print(f"No network has {' or '.join(options.only)} in its name.", file=sys.stderr)
        return 2
    results = []
    for entry in chosen:
        results.append(check(entry))
        print(progress(results[-1]), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps([result.to_dict() for result in results], indent=1), encoding="utf-8")
    if options.only:
        print(table(results))
    else:
        PAGE.write_text(page(results, machine()), encoding="utf-8")
    print(summary(results))
    return int(any(result.faults() for result in results))


def progress(result: Result) -> str:
    """Return the line that is shown while the others still run."""
    verdict = "; ".join(result.faults()) or ("not all covered" if result.uncovered else "right")
    return f"{result.seconds:6.1f} s  {result.name}: {verdict}"


def machine() -> str:
    """Say what this ran on."""
    versions = []
    for name in ("torchvision", "timm", "transformers"):
        module = sys.modules.get(name)
        versions.append(f"{name} {getattr(module, '__version__', 'missing')}")
    return f"one core ({platform.machine()}), PyTorch {torch.__version__}, {', '.join(versions)}"


if __name__ == "__main__":
    sys.exit(main())
