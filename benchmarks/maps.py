"""Keep the maps of forty networks, and compare them after a change that is to change none.

    python -m benchmarks.maps write maps.pt      # before the change
    python -m benchmarks.maps compare maps.pt    # after it: a line for each network, and 1 where a map differs

Each network is explained by eight presets and by gamma, in float64 and on one thread, with weights and inputs from
fixed seeds. Two maps are equal where they differ by at most 1e-12 of the largest relevance; NaN, infinity and another
shape differ by "inf", and so does a map that only one of the two could compute. A changed warning is shown, and is no
difference. Compare on the machine, and with the libraries, that wrote the file: others round in another way.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: weights are random
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor

from benchmarks._map_networks import NETWORKS, Case
from relprop import LRP, RelpropWarning, Rules
from relprop.rules import Gamma, LinearRule

TOLERANCE = 1e-12

# Every rule for linear maps at least once: z+ with the bias and without, w^2 and zB at the pixels, flat in all layers,
# where relevance reaches units of zero. Presets have gamma on convolutions only, so that it also comes alone.
RULES: dict[str, Callable[[], Rules | LinearRule]] = {
    "lrp0": lambda: Rules.preset("lrp0"),
    "attnlrp": lambda: Rules.preset("attnlrp"),
    "cp_lrp": lambda: Rules.preset("cp_lrp"),
    "epsilon_gamma_box": lambda: Rules.preset("epsilon_gamma_box", low=-6.0, high=6.0),
    "gamma": Gamma,
    "alpha2_beta1": lambda: Rules.preset("alpha2_beta1"),
    "zplus": lambda: Rules.preset("zplus"),
    "deep_taylor": lambda: Rules.preset("deep_taylor"),
    "flat": lambda: Rules.preset("flat"),
}

# What is kept of a map: {"maps": a tensor for each input, "sum", "warnings"}, or {"error"}; of a network: one of these
# for each entry of RULES, by name.
Kept = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Write or compare; return 1 if a map could not be computed or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="networks with such a word in their name")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries; relprop's are caught
    chosen = [name for name in NETWORKS if not options.only or any(word in name for word in options.only)]
    if not chosen:
        print(f"No network has {' or '.join(options.only)} in its name.", file=sys.stderr)
        return 2
    return write(options.file, chosen) if options.action == "write" else compare(options.file, chosen)


def write(file: Path, chosen: list[str]) -> int:
    """Compute the maps of the chosen networks and save them."""
    found, failed = {}, 0
    for name in chosen:
        start = time.perf_counter()
        found[name] = explain(NETWORKS[name])
        errors = {preset: kept["error"] for preset, kept in found[name].items() if "error" in kept}
        failed += len(errors)
        print(
            f"{time.perf_counter() - start:6.1f} s  {name}", *(f"\n    {p}: {e}" for p, e in errors.items()), flush=True
        )
    torch.save({"torch": str(torch.__version__), "networks": found}, file)
    print(f"{len(found)} networks, {len(found) * len(RULES) - failed} maps; {failed} failed")
    return int(failed > 0)


def compare(file: Path, chosen: list[str]) -> int:
    """Compute the maps of the chosen networks anew and print how far they are from those of the file."""
    saved = torch.load(file, weights_only=True)
    if saved["torch"] != str(torch.__version__):
        print(f"The file was written with PyTorch {saved['torch']}; this is {torch.__version__}.")
    if missing := [name for name in chosen if name not in saved["networks"]]:
        print(f"The file has no maps of {', '.join(missing)}: write it anew, from before the change.", file=sys.stderr)
        return 2
    print("largest difference, as a share of the largest relevance; 0 where all bits are equal\n")
    print(" " * 54, *(f"{preset[:9]:>9}" for preset in RULES))
    differences: dict[tuple[str, str], float] = {}
    changed = 0
    for name in chosen:
        before, after = saved["networks"][name], explain(NETWORKS[name])
        row = {preset: difference(after[preset], before[preset]) for preset in RULES}
        differences |= {(name, preset): value for preset, value in row.items()}
        print(f"{name:54.54}", *(f"{value:9.0e}" if value else f"{0:9}" for value in row.values()), flush=True)
        for preset in RULES:
            news = changes(after[preset], before[preset])
            changed += any("warning" in line for line in news)
            print("".join(f"    {preset}: {line}\n" for line in news), end="")
    over = [
        f"{name} by {preset}: {value:.1e}" for (name, preset), value in differences.items() if not value <= TOLERANCE
    ]
    print(
        f"\n{len(chosen)} networks, {len(differences)} maps; the largest difference is {max(differences.values()):.1e}."
    )
    print(f"{len(over)} differ by more than {TOLERANCE}; the warnings of {changed} changed.", *over, sep="\n  ")
    return int(bool(over))


def explain(build: Callable[[], Case]) -> dict[str, Kept]:
    """Return what is kept of a network; an error of one of its maps, or of the network itself, is kept as its text."""
    try:
        case = build()
    except Exception as error:  # noqa: BLE001  # one network must not keep the others from being compared
        return {preset: {"error": text(error)} for preset in RULES}
    return {preset: explain_by(rules(), case) for preset, rules in RULES.items()}


def explain_by(rules: Rules | LinearRule, case: Case) -> Kept:
    """Return what is kept of a map."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RelpropWarning)
            found = LRP(case.model, rules).attribute(case.inputs, case.target, forward_kwargs=dict(case.keywords))
    except Exception as error:  # noqa: BLE001
        return {"error": text(error)}
    maps = list(found.values()) if isinstance(found, Mapping) else [found]
    messages = sorted({f"{type(warning.message).__name__}: {warning.message}" for warning in caught})
    return {"maps": maps, "sum": float(sum(one.sum() for one in maps)), "warnings": messages}


def text(error: Exception) -> str:
    """Return the first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def difference(after: Kept, before: Kept) -> float:
    """Return ``max |R - R'| / max |R'|``, the largest over the inputs; infinity where there is no such number."""
    if "error" in after or "error" in before:
        return 0.0 if after == before else torch.inf
    if len(after["maps"]) != len(before["maps"]):
        return torch.inf
    return max(_difference(new, old) for new, old in zip(after["maps"], before["maps"], strict=True))


def _difference(new: Tensor, old: Tensor) -> float:
    if new.shape != old.shape or new.dtype != old.dtype or not (new.isfinite().all() and old.isfinite().all()):
        return torch.inf
    if torch.equal(new, old):
        return 0.0
    return float((new - old).abs().max() / old.abs().max())  # infinite where all was zero


def changes(after: Kept, before: Kept) -> list[str]:
    """Return what else is to be told of a map: errors, and warnings that came or went."""
    told = [f"{when} {kept['error']}" for when, kept in (("now", after), ("before", before)) if "error" in kept]
    if told:
        return told
    new, old = set(after["warnings"]), set(before["warnings"])
    told += [f"a new warning: {message}" for message in sorted(new - old)]
    return told + [f"a warning no longer given: {message}" for message in sorted(old - new)]


if __name__ == "__main__":
    sys.exit(main())
