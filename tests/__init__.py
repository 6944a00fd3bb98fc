"""The tests, in the tree of `src/relprop`: what tests `rules/registry.py` stands in `tests/rules`, and so on.

What they compare with stands here. Nothing of it comes from relprop but the rules that are put to the test:

- `reference.py`: every linear layer as an explicit matrix, every rule as its formula on relevances. Start there.
- `reference_steps.py`: activations, batch norm, sums and pooling beside it, and whole sequences of layers.
- `explicit.py`, `unrolled.py`: networks whose plain gradient is relevance, for what is too large for matrices.
- `two_phase_reference.py`: relevance as a function that can be differentiated, for losses on it.
- `network_reference.py`: one branching network, its backward pass written by hand.
- `fusion.py`: copies of networks with batch norm fused into the layer before.

- `fuzz/`: random programs, each beside its surrogate by plain autograd.

`cases.py` lists the layers and rules that are compared; `compare.py`, `checks.py` and `shares.py` compare; `models.py`
has small networks; `ids.py` names the cases, and `quick.py` says which of them `make quick` runs. Whole networks, and
the zoo, are in `networks`, the examples in `examples`.
"""
