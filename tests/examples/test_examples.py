"""Each example runs at a tiny size, prints what it did and writes its picture."""

from __future__ import annotations

import copy
import re
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from relprop import LRP, NoiseTunnel, PatternAttribution, PatternNet, methods

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def picture(path: Path) -> bool:
    """Whether there is a picture at ``path`` that holds more than one colour."""
    return bool(plt.imread(path).std() > 0)


def test_every_example_is_tested(examples: dict[str, ModuleType]) -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(examples)


def test_digits_network_learns(examples: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    digits = examples["digits"]
    model, data = digits.trained(epochs=4, width=8)
    assert digits.accuracy(model, data.test_x, data.test_y) > 0.9
    assert not model.training
    assert "test accuracy 9" in capsys.readouterr().out
    assert [len(part) for part in data] == [1347, 1347, 450, 450]
    assert 0 <= float(data.train_x.min()) < float(data.train_x.max()) <= 1


@pytest.mark.slow
def test_demo_explains_with_every_method(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = examples["demo"]
    demo.run(tmp_path, epochs=1, rows=2)
    assert picture(tmp_path / "digits.png")
    out = capsys.readouterr().out
    for name in demo.methods(examples["digits"].DigitsNet(4)):
        assert name.replace("_\n", "_").replace("\n", " ") in out
    assert str(tmp_path / "digits.png") in out


def test_demo_relevances_fit_the_input_and_lrp0_is_gradient_x_input(
    examples: dict[str, ModuleType],
) -> None:
    torch.manual_seed(0)
    model = examples["digits"].DigitsNet(4).eval()
    x = torch.rand(2, 1, 8, 8)
    relevances = examples["demo"].explain(model, x, torch.tensor([1, 2]))
    assert len(relevances) >= 8
    assert all(each.shape == x.shape for each in relevances.values())
    torch.testing.assert_close(relevances["LRP\nlrp0"], relevances["Gradient\nx Input"])


def test_demo_main_runs_every_part(
    examples: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str, Path]] = []
    demo = examples["demo"]
    monkeypatch.setattr(demo, "run", lambda folder: parts.append(("demo", folder)))
    for name in ("all_methods", "tutorial_walk", "right_reasons"):
        monkeypatch.setattr(examples[name], "run", lambda folder, name=name: parts.append((name, folder)))
    demo.main(tmp_path)
    assert parts == [(name, tmp_path) for name in ("demo", "all_methods", "tutorial_walk", "right_reasons")]


@pytest.mark.slow
def test_patterns_hold_more_of_the_signal_than_filters(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held out, in every layer, the linear and the ReLU+- estimator are above the filter."""
    quality = examples["patterns"].run(tmp_path, epochs=3, width=8, units=4, rows=2)
    assert len(quality.values) == 7
    for layer, rho in quality.means().items():
        assert min(rho["linear"], rho["relu+-"]) > rho["filter"] + 0.3, layer
        for estimator in ("linear", "relu+-"):
            assert bool((quality.values[layer][estimator] > quality.values[layer]["filter"]).all())
    assert picture(tmp_path / "signal_quality.png") and picture(tmp_path / "maps.png")
    assert str(quality) in capsys.readouterr().out
    assert (tmp_path / "signal_quality.txt").read_text(encoding="utf-8") == f"{quality}\n"


@pytest.mark.slow
def test_tutorial_walk_through_the_dense_network(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    maps = examples["tutorial_walk"].walk_dense(tmp_path, epochs=1)
    assert picture(tmp_path / "tutorial_dense.png")
    assert list(maps) == ["dense4", "dense3", "dense2", "dense1", "pixels"]
    assert torch.count_nonzero(maps["dense4"], dim=1).tolist() == [1] * 4  # only the target carries relevance
    # zB has no bias, and its stabilizer is small: what reaches dense1 reaches the pixels.
    torch.testing.assert_close(maps["pixels"].flatten(1).sum(1), maps["dense1"].sum(1), rtol=1e-3, atol=1e-3)


def written_out(
    model: torch.nn.Sequential, x: Tensor, target: Tensor, gamma: str, epsilon: str, low: Tensor, high: Tensor
) -> dict[str, Tensor]:
    """The tutorial's four steps (forward, divide, backward, multiply) from layer to layer, on the relevance itself."""
    a = [x]
    for module in model:
        a.append(module(a[-1]).detach())
    relevance = torch.zeros_like(a[-1]).scatter(1, target[:, None], a[-1].gather(1, target[:, None]))
    maps = {}
    for (name, module), inputs in reversed(list(zip(model.named_children(), a[:-1], strict=True))):
        maps[name] = relevance
        if isinstance(module, torch.nn.ReLU):
            continue
        if isinstance(module, torch.nn.Flatten):
            relevance = relevance.view_as(inputs)
            continue
        inputs = inputs.clone().requires_grad_()
        layer = torch.nn.AvgPool2d(2) if isinstance(module, torch.nn.MaxPool2d) else copy.deepcopy(module)
        if name in ("dense1", "conv1_1"):
            bounds = [bound.expand_as(inputs).clone().requires_grad_() for bound in (low, high)]
            layer.bias.data.zero_()
            parts = [layer, copy.deepcopy(layer), copy.deepcopy(layer)]
            parts[1].weight.data.clamp_(min=0)
            parts[2].weight.data.clamp_(max=0)
            z = parts[0](inputs) - parts[1](bounds[0]) - parts[2](bounds[1])
            z.backward((relevance / z).detach())
            relevance = inputs * inputs.grad + bounds[0] * bounds[0].grad + bounds[1] * bounds[1].grad
        else:
            if fnmatch(name, gamma):
                for parameter in layer.parameters():
                    parameter.data += 0.1 * parameter.data.clamp(min=0)
            z = layer(inputs)
            if fnmatch(name, epsilon):
                z = z + 0.1 * z.flatten(1).pow(2).mean(dim=1).sqrt().view(-1, *[1] * (z.ndim - 1)).detach()
            # Where z is 0 so is the relevance, and the quotient is 0 / 0.
            z.backward(torch.where(relevance == 0, 0.0, relevance / z).detach())
            relevance = inputs * inputs.grad
        relevance = relevance.detach()
    return maps | {"pixels": relevance}


@pytest.mark.parametrize("network", ["dense", "vgg16"])
def test_the_walk_equals_the_tutorial_written_out(examples: dict[str, ModuleType], network: str) -> None:
    walk = examples["tutorial_walk"]
    torch.manual_seed(0)
    if network == "dense":
        model, x = walk.dense_network((30, 20, 10)).double(), torch.rand(3, 1, 8, 8).double()
        globs, low, high = ("dense2", "dense3"), torch.zeros(1).double(), torch.ones(1).double()
    else:
        model, x = walk.vgg16(width=3, hidden=8, side=32, classes=10).double(), torch.randn(3, 3, 32, 32).double()
        globs, low, high = (
            ("conv[1-3]_*", "conv[45]_*"),
            torch.full((3, 1, 1), -5.0).double(),
            torch.tensor(5.0).double(),
        )
        for module in model:
            if isinstance(module, torch.nn.Conv2d):
                module.bias.data.normal_(std=0.1)
    target = torch.tensor([1, 4, 7])
    expected = written_out(model, x, target, *globs, low, high)
    method = LRP(model, walk.tutorial_rules(*globs, low=low, high=high))
    shown = [name for name, module in model.named_children() if not isinstance(module, torch.nn.Flatten)]
    found = method.attribute_layers(x, shown, target)
    found["pixels"] = method.attribute(x, target)
    for name, relevance in found.items():
        # The rules add a stabilizer of 1e-6 that the tutorial does not have.
        error = float((relevance - expected[name].view_as(relevance)).norm() / expected[name].norm())
        assert error < 1e-4, name


@pytest.mark.slow
def test_tutorial_walk_through_a_small_vgg(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    maps = examples["tutorial_walk"].walk_photograph(tmp_path, side=32, width=4, hidden=16)
    assert picture(tmp_path / "tutorial_vgg16.png")
    assert len(maps) == 13 + 5 + 3 + 1
    assert maps["pixels"].shape == (1, 3, 32, 32)
    # No bias, and LRP-0 in the dense layers: all of the output arrives at the last pooling.
    torch.testing.assert_close(maps["pool5"].sum(), maps["fc8"].sum(), rtol=1e-4, atol=1e-4)


def test_vgg16_has_the_layers_of_configuration_d(examples: dict[str, ModuleType]) -> None:
    model = examples["tutorial_walk"].vgg16(width=2, hidden=8, side=32, classes=10)
    kinds = [type(module).__name__ for module in model]
    assert [kinds.count(kind) for kind in ("Conv2d", "MaxPool2d", "Linear", "ReLU")] == [13, 5, 3, 15]
    assert [name for name, module in model.named_children() if isinstance(module, torch.nn.Linear)] == [
        "fc6",
        "fc7",
        "fc8",
    ]
    assert [module.out_channels for module in model if isinstance(module, torch.nn.Conv2d)] == [
        2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16,
    ]  # fmt: skip
    assert model(torch.ones(1, 3, 32, 32)).shape == (1, 10)


def test_photograph_fits_the_network(examples: dict[str, ModuleType]) -> None:
    x = examples["tutorial_walk"].photograph()
    assert x.shape == (1, 3, 224, 224)
    assert 0 <= float(x.min()) < 0.1 < 0.9 < float(x.max()) <= 1


@pytest.mark.slow
def test_right_reasons_moves_relevance_into_the_mask(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, regularised = examples["right_reasons"].run(tmp_path, epochs=12)
    assert picture(tmp_path / "right_reasons.png")
    assert regularised.outside < plain.outside / 4
    assert regularised.shuffled > plain.shuffled + 0.2
    assert regularised.marked > 0.95
    assert "relevance outside" in capsys.readouterr().out


def test_the_share_outside_counts_the_frame_alone(examples: dict[str, ModuleType]) -> None:
    right = examples["right_reasons"]
    frame = 1 - right.mask()
    assert right.mask().sum() == 64
    shares = right.share_outside(torch.stack([frame, right.mask(), torch.ones(12, 12)])[:, None])
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.0, 80 / 144]))


def test_each_label_has_a_mark_of_its_own_in_the_frame(examples: dict[str, ModuleType]) -> None:
    right = examples["right_reasons"]
    x = right.framed(torch.zeros(10, 1, 8, 8), torch.arange(10))
    assert x.flatten(1).sum(1).tolist() == [4.0] * 10
    assert float((x * right.mask()).sum()) == 0
    assert float(x.sum(0).max()) == 1


@pytest.mark.slow
def test_sequence_names_the_pixels_that_matter(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = examples["sequence"].run(tmp_path, epochs=6, width=24)
    assert picture(tmp_path / "sequence.png")
    printed = capsys.readouterr().out
    chance = float(re.search(r"at random +([0-9.]+)", printed)[1])  # type: ignore[index]
    assert outcomes["LRP"].fall > 2 * chance
    assert outcomes["LRP"].unexplained < 1e-6
    assert outcomes["LRP"].relevance.shape == (450, 1, 8, 8)


def test_erasing_follows_the_order(examples: dict[str, ModuleType]) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    torch.nn.init.ones_(model[1].weight)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    order = torch.tensor([[3, 0, 1, 2]])
    assert examples["sequence"].fall(model, x, torch.tensor([0]), order, 2) == 5.0


@pytest.mark.slow
def test_graph_names_the_nodes_and_edges_that_matter(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falls = examples["graph"].run(tmp_path, epochs=3, width=12)
    assert picture(tmp_path / "graph.png")
    assert "nodes" in capsys.readouterr().out
    assert all(fall["by relevance"] > 1.5 * fall["at random"] for fall in falls.values())


def test_graphs_of_images(examples: dict[str, ModuleType]) -> None:
    """Three pixels in a corner, two of which touch, and one pixel in a second image."""
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0], images[0, 0, 1, 1], images[0, 0, 0, 3], images[1, 0, 7, 7] = 1.0, 0.5, 0.75, 1.0
    graphs = examples["graph"].graphs_of(images)
    assert graphs.nodes[:, 0].tolist() == [1.0, 0.75, 0.5, 1.0]
    assert torch.stack(examples["graph"].places(graphs.nodes), 1).tolist() == [[0, 0], [0, 3], [1, 1], [7, 7]]
    assert sorted(graphs.edges.T.tolist()) == [[0, 2], [2, 0]]
    assert graphs.graph.tolist() == [0, 0, 0, 1]
    chosen = torch.tensor([False, False, True, False])
    left = graphs.without(chosen, torch.zeros(2, dtype=torch.bool))
    assert left.edges.shape == (2, 0)
    assert left.nodes.abs().sum(1).tolist() == [3.0, 2.75, 0.0, 3.0]


@pytest.mark.slow
def test_validate_measures_every_method(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = examples["validate"]
    validate.run(tmp_path, epochs=1, samples=6, tiles=4)
    out = capsys.readouterr().out
    for name in validate.explainers():
        assert out.count(name) >= 3  # selectivity, mosaics, the last table
    for name in ("selectivity", "road", "sanity", "randomised_maps", "mosaics"):
        assert picture(tmp_path / f"{name}.png")


def test_mosaics_hold_their_class_where_the_mask_says(examples: dict[str, ModuleType]) -> None:
    data = examples["digits"].load()
    x, target, mask = examples["validate"].mosaics(data, 6)
    assert x.shape == (6, 1, 32, 32) and mask.flatten(1).sum(1).tolist() == [256] * 6
    for n in range(6):
        tile = x[n, 0][mask[n]].view(16, 16)[::2, ::2]
        found = [k for k in range(len(data.test_x)) if torch.equal(data.test_x[k, 0], tile)]
        assert int(data.test_y[found[0]]) == int(target[n])


@pytest.mark.slow
def test_all_methods_are_shown(
    examples: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = examples["all_methods"]
    torch.manual_seed(0)
    model = examples["digits"].DigitsNet(4).eval()
    shown = {type(method) for _, method, _ in example.methods(model, torch.rand(2, 1, 8, 8))}
    # Noise by another name is shown by its three; what has to be fitted first has an example of its own.
    assert {listed.method for listed in methods().values()} - shown == {NoiseTunnel, PatternAttribution, PatternNet}
    slow = {"Simple Taylor", "KernelSHAP", "Shapley sampling"}
    every = example.methods
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "methods", lambda *given: [each for each in every(*given) if each[0] not in slow])
        example.run(tmp_path, epochs=1, digits=(0, 3))
    assert picture(tmp_path / "methods.png")
    out = capsys.readouterr().out
    assert all(title in out for title, _, _ in every(model, torch.rand(2, 1, 8, 8)) if title not in slow)
    rows = {line[:24].strip(): line for line in out.splitlines()}
    assert float(rows["DeepLIFT, Rescale"].split()[-3]) == 0.0
    assert "f - f'" in rows["Integrated gradients"] and "coefficient" in rows["Gradient"]
