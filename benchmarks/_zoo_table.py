"""The table of the zoo, as a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks._zoo_checks import GRADIENT, GRADIENT_TOLERANCE, LARGEST_GROWTH, ROUNDED_TOLERANCE, TOLERANCE, Result

INTRODUCTION = f"""\
# The zoo

Networks of torchvision, timm and transformers as they come, explained without touching them. Each has random weights,
biases and statistics, none of them trivially zero. It is the smallest of its family, or made smaller by its own
options, and runs in float64 on one image (or clip). `make zoo` writes this page; `python -m benchmarks.zoo --only swin`
looks at some of them.

Not here: of torchvision the detectors, optical flow, and the video transformers that only take 16 frames of 224 x 224
(`mvit`); of the image classifiers of transformers ImageGPT and Siglip2, which take clusters and packed patches in the
place of pixels, Dinat, which needs a compiled extension, ShieldGemma2, a language model, and TimmWrapper (timm).

{{summary}} This took {{minutes}} minutes on {{machine}}.

What the columns hold:

- **not covered**: the operations that a warning named; "-" where all are covered.
- **delta**: $(f - \\sum R) / |f|$ under LRP-0, which is what biases absorb, and softmax under AttnLRP.
- **unexplained**: what no line of the report explains, the sum of its absolute values over $|f|$; then the same where
  biases, running means and embeddings of positions are set to zero.
- **size**: $\\sum |R| / |f|$; then that of Gradient x Input with gates held constant.
- **reference, differs**: what the whole map under LRP-0 is compared with, and the largest difference as a share of the
  largest relevance. Both references share no code with relprop:
  - *gradient*: Gradient x Input by plain autograd, which LRP-0 equals where the network is piecewise linear.
  - *surrogate*: every activation, gate, product, norm, softmax and attention is replaced, as the network calls it, by
    one of the same value whose ordinary derivative is the coefficient that the [theory](theory.md) gives, such as
    $f(0) + z q$ with the quotient $q = (f(z) - f(0)) / z$ held constant. Gradient x Input of that is LRP-0.
- **fused, differs**: how many of the network's batch norms can be fused into the layer before them, and the largest
  difference between the maps of the network and of its fused copy, with Epsilon, Gamma and ZPlus everywhere.
- **s**: seconds for all of it, on one thread.

A network passes when it differs from its reference by at most {GRADIENT_TOLERANCE:.0e} (gradient) or {TOLERANCE:.0e}
(surrogate, fused copy), when at most {TOLERANCE:.0e} of the output is unexplained, and when its size is at most
{LARGEST_GROWTH:.0f} times that of Gradient x Input, since a map can sum right and be wrong. Networks that compute in
float32 here or there whatever they are given, marked \\*, are held to {ROUNDED_TOLERANCE:.0e}.

In PyTorch 2.13 on a CPU the gradient of a batch norm in eval mode is wrong for a single image whose gradient has the
strides of a transposed tensor, as in LeViT. The references write batch norm out, and relprop does so too.
"""

HEADER = (
    "network", "not covered", "delta", "unexplained", "", "size", "", "reference", "differs", "fused", "differs", "s",
)  # fmt: skip


def page(results: Sequence[Result], machine: str) -> str:
    """Return the page as Markdown."""
    minutes = sum(result.seconds for result in results) / 60
    text = INTRODUCTION.format(machine=machine, minutes=f"{minutes:.0f}", summary=summary(results))
    for library in dict.fromkeys(result.name.split("/")[0] for result in results):
        rows = [result for result in results if result.name.startswith(f"{library}/")]
        text += f"\n## {library}\n\n{table(rows)}"
    return text


def summary(results: Sequence[Result]) -> str:
    """Say how many networks are right, and which are not."""
    right = [result for result in results if not result.faults() and not result.uncovered]
    named = [result.name for result in results if not result.faults() and result.uncovered]
    wrong = [result.name for result in results if result.faults()]
    text = f"{len(right)} of {len(results)} networks pass every check."
    if named:
        text += f" Named as not covered: {', '.join(named)}."
    if wrong:
        text += f" Failing: {', '.join(wrong)}."
    return text


def table(results: Sequence[Result]) -> str:
    """Return one line for each network."""
    lines = [HEADER, ["---", "---", *["--:"] * 5, "---", *["--:"] * 4], *map(_cells, results)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(result: Result) -> list[str]:
    name = result.name.split("/", 1)[1] + (" \\*" if result.rounded else "")
    if result.error:
        return [name, f"failed: {result.error}", *[""] * (len(HEADER) - 3), f"{result.seconds:.1f}"]
    differences = result.fused_differences.values()
    return [
        name,
        "; ".join(operations(result)) or "-",
        f"{result.delta:.3g}",
        f"{result.unexplained:.0e}",
        f"{result.unexplained_without_biases:.0e}",
        f"{result.size:.3g}",
        f"{result.gradient_size:.3g}",
        "gradient" if result.reference == GRADIENT else result.reference,
        f"{result.difference:.0e}",
        f"{result.fused} of {result.norms}" if result.norms else "",
        f"{max(differences):.0e}" if differences else "",
        f"{result.seconds:.1f}",
    ]


def operations(result: Result) -> list[str]:
    """Return the names of the operations that were warned of, each once."""
    return list(dict.fromkeys(re.split(r" in | has | was ", text)[0] for text in result.uncovered))
