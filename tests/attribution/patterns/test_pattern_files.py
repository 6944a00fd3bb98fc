"""Patterns in files, with other networks, with other weights, and without any; and the memory of fitting."""

from __future__ import annotations

import builtins
import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    InputError,
    InputTypeError,
    MissingExtraError,
    ModelError,
    PatternAttribution,
    PatternError,
    PatternNet,
    PatternWarning,
)
from relprop.propagation.call.call import Call

UNIT = "0.weight with 1"


def network(channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(9 * channels, 3)
    )
    return model.eval()


def images(count: int = 60) -> Tensor:
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(1))


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["linear", "relu+", "relu+-"])
def test_what_was_saved_explains_alike(estimator: str, tmp_path: Path) -> None:
    model, x = network(), images(5)
    fitted = PatternNet(model).fit([images()], estimator)
    fitted.save(tmp_path / "patterns.safetensors")
    copy = network()
    loaded = PatternNet(copy).load(tmp_path / "patterns.safetensors")
    assert torch.equal(loaded.attribute(x, 1), fitted.attribute(x, 1))
    assert str(loaded.patterns) == str(fitted.patterns)
    assert loaded.patterns.estimator == estimator and loaded.patterns.samples == fitted.patterns.samples
    for unit, pattern in fitted.patterns.items():
        again = loaded.patterns[unit]
        assert again.directions.keys() == pattern.directions.keys()
        for region in pattern.directions:
            assert torch.equal(again.directions[region], pattern.directions[region])
            assert torch.equal(again.missing[region], pattern.missing[region])
    shared = PatternAttribution(copy).load(tmp_path / "patterns.safetensors")
    assert torch.equal(shared.attribute(x, 1), PatternAttribution(model, fitted.patterns).attribute(x, 1))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patterns.safetensors"
    PatternNet(network()).fit([images()]).save(path)
    with pytest.raises(PatternError, match=r"another network.*'0\.weight'.*\(4, 2, 3, 3\).*\(5, 2, 3, 3\)"):
        PatternNet(network(5)).load(path)
    with pytest.raises(PatternError, match=r"another network.*no such parameter"):
        PatternNet(nn.Sequential(nn.Flatten(), nn.Linear(50, 3))).load(path)


def test_what_is_no_file_of_patterns_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other, text = tmp_path / "weights.safetensors", tmp_path / "text.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    text.write_text("not at all")
    for path in (other, text):
        with pytest.raises(PatternError, match=r"give (a file|one) that `save` wrote"):
            PatternNet(network()).load(path)
    with pytest.raises(FileNotFoundError):
        PatternNet(network()).load(tmp_path / "nothing.safetensors")


Tensors = dict[str, Tensor]
Damage = Callable[[Tensors, list[Any]], Any]
"""What is done to the tensors of a file and to its list of units; a string returned is written in the place of that."""

PARTS = ["weight", "bias", "linear", "relu+", "relu-", "missing linear", "missing relu+", "missing relu-"]
CHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "shortened": lambda x: x[:-1].contiguous(),
    "with a dimension more": lambda x: x[None].contiguous(),
    "of another type": lambda x: x.float() if x.dtype == torch.bool else x.to(torch.int32),
    "of complex numbers": lambda x: x.to(torch.complex64),
    "in float8": lambda x: x.float().to(torch.float8_e4m3fn),
    "emptied": lambda x: x[:0].contiguous(),
}


def changed(part: str, how: str) -> Damage:
    return lambda tensors, units: tensors.update({f"4.weight/{part}": CHANGED[how](tensors[f"4.weight/{part}"])})


def filled(part: str, value: float) -> Damage:
    return lambda tensors, units: tensors[f"4.weight/{part}"].view(-1)[:1].fill_(value)


def without_part(part: str) -> Damage:
    return lambda tensors, units: tensors.pop(f"4.weight/{part}")


def entry(name: str, value: Any) -> Damage:
    return lambda tensors, units: units[1].update({name: value})


DAMAGES: dict[str, Damage] = {
    **{f"{part} {how}": changed(part, how) for part in PARTS for how in CHANGED},
    **{f"{part} holds {v}": filled(part, v) for part in PARTS[:5] for v in (math.nan, math.inf)},
    **{f"without {part}": without_part(part) for part in PARTS},
    **{
        f"{name} is {value!r}": entry(name, value)
        for name, values in {
            "unit": ["0.weight with 1", "nothing", 4, None, []],
            "parameter": [None, 4, ["4.weight"], "4.wei"],
            "rectified": ["yes", 1, None],
            "samples": [-1, 1.5, True, "60", None],
            "parts": [None, "weight", {}, [1], ["weight"], [[]]],
        }.items()
        for value in values
    },
    "a part is not listed": entry("parts", PARTS[:-1]),
    "a part more is listed": entry("parts", [*PARTS, "more"]),
    "a part is listed twice": entry("parts", [*PARTS, "weight"]),
    "an entry of its own kind": lambda tensors, units: units.append("unit"),
    "an entry twice": lambda tensors, units: units.append(units[1]),
    "an entry without a key": lambda tensors, units: units[1].pop("parts"),
    "an entry with a key more": lambda tensors, units: units[1].update(more=1),
    "no entry of a unit": lambda tensors, units: units.pop(),
    "a tensor of no unit": lambda tensors, units: tensors.update(more=torch.ones(2)),
    "units nested deep": lambda tensors, units: "[" * 200_000 + "]" * 200_000,
    "units nested open": lambda tensors, units: "[" * 200_000,
    "units of a long number": lambda tensors, units: "9" * 5000,
    "units cut off": lambda tensors, units: "[{",
    "units of a mapping": lambda tensors, units: "{}",
    "units of null": lambda tensors, units: "null",
    "units of nothing": lambda tensors, units: "",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patterns") / "patterns.safetensors"
    PatternNet(network()).fit([images()], "relu+-").save(path)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, written: Path, tmp_path: Path) -> None:
    """By an error of relprop's own, on loading."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(written), framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
    units = json.loads(metadata["units"])
    text = DAMAGES[damage](tensors, units)
    metadata["units"] = text if isinstance(text, str) else json.dumps(units)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata=metadata)
    with pytest.raises(PatternError, match=r"is damaged|another network"):
        PatternNet(network()).load(tmp_path / "damaged.safetensors")


def test_damaged_bytes_are_refused_or_are_patterns(written: Path, tmp_path: Path) -> None:
    """A byte of the header is another, or the file ends early: PatternError, or patterns whose numbers are finite."""
    given, path = written.read_bytes(), tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(given[:8], "little")
    random, refused = torch.Generator().manual_seed(0), 0
    for number in range(60):
        at, value = (int(torch.randint(0, most, (), generator=random)) for most in (header, 256))
        path.write_bytes(given[:at] if number % 4 == 0 else given[:at] + bytes([value]) + given[at + 1 :])
        try:
            PatternNet(network()).load(path)
        except PatternError:
            refused += 1
    assert refused > 40


def test_without_safetensors_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "safetensors")
    method = PatternNet(network()).fit([images()])
    with pytest.raises(MissingExtraError, match=r"relprop\[patterns\]"):
        method.save(tmp_path / "patterns.safetensors")


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be missing."""
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("relprop.attribution.patterns.fit.import_module", missing)


# What is wrong ------------------------------------------------------------------------------------


def test_before_it_is_fitted_it_says_so() -> None:
    method = PatternNet(network())
    for use in (
        lambda: method.attribute(images(2), 0),
        lambda: method.save("nowhere"),
        lambda: method.signal_quality([images()], [images()]),
    ):
        with pytest.raises(PatternError, match=r"PatternNet has no patterns yet\. Call fit"):
            use()


def test_patterns_of_another_network_are_refused() -> None:
    patterns = PatternNet(network(5)).fit([images()]).patterns
    with pytest.raises(PatternError, match=r"'0\.weight with 1'.*\(4, 2, 3, 3\).*\(5, 2, 3, 3\).*another network"):
        PatternNet(network(), patterns).attribute(images(2), 0)
    with pytest.raises(PatternError, match=r"'1\.weight'.*hold none"):
        PatternNet(nn.Sequential(nn.Flatten(), nn.Linear(50, 3)), patterns).attribute(images(2), 0)
    with pytest.raises(InputTypeError, match="Patterns of a fitted method"):
        PatternNet(network(), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("parameter", ["0.weight", "0.bias", "1.running_var", "1.bias", "4.weight"])
def test_changed_weights_are_warned_of(parameter: str) -> None:
    model = network()
    method = PatternNet(model).fit([images()])
    method.attribute(images(2), 0)  # a warning would be an error
    model.state_dict()[parameter].flatten()[0] += 0.5
    unit = UNIT if parameter[0] in "01" else "4.weight"
    with pytest.warns(PatternWarning, match=f"have changed since the patterns were fitted \\({unit}\\)"):
        method.attribute(images(2), 0)
    with pytest.raises(PatternError, match="have changed since"):
        method.signal_quality([images()], [images()])


def test_another_precision_is_no_change() -> None:
    model = network()
    method = PatternNet(model).fit([images()])
    single = method.attribute(images(3), 0)
    model.double()
    torch.testing.assert_close(method.attribute(images(3).double(), 0).float(), single, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [
        ([], InputError, "yielded no batch"),
        (images(), InputTypeError, r"Give \[x\] for one batch"),
        (3, InputTypeError, "got int"),
        ([()], InputError, "empty tuple"),
        ([["text"]], InputTypeError, "str"),
    ],
)
def test_bad_loaders_are_refused(loader: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        PatternNet(network()).fit(loader)


def test_bad_estimators_and_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"estimator must be one of .*'relu\+-'.*'relu'"):
        PatternNet(network()).fit([images()], "relu")  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="no linear call"):
        PatternNet(nn.Flatten()).fit([images()])


def test_a_failed_fit_keeps_the_patterns_before() -> None:
    method = PatternNet(network()).fit([images()])
    before = method.patterns
    with pytest.raises(InputError):
        method.fit([])
    assert method.patterns is before


# Passing over the data ----------------------------------------------------------------------------


def test_progress_is_shown_only_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = PatternNet(network())
    method.fit([images()] * 3)
    assert capsys.readouterr() == ("", "")
    method.fit([images()] * 3, progress=True)
    shown = capsys.readouterr().err
    assert "fit patterns" in shown and "3/3" in shown
    without(monkeypatch, "tqdm")
    method.fit([images()] * 3, progress=True)
    assert capsys.readouterr().err.endswith("fit patterns: batch 3/3\n")


@pytest.mark.slow
def test_the_memory_of_fitting_does_not_grow_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector nothing of a batch is left when the next begins, and autograd saves nothing."""
    batches: list[weakref.ref[Tensor]] = []
    calls: list[weakref.ref[Call]] = []
    held: list[int] = []
    made = Call.__init__

    def remembered(call: Call, *args: Any, **kwargs: Any) -> None:
        made(call, *args, **kwargs)
        calls.append(weakref.ref(call))

    def loader() -> Iterator[tuple[Tensor, int]]:
        for number in range(40):
            if number > 1:
                assert sum(batch() is not None for batch in batches[:-1]) == 0
                assert sum(call() is not None for call in calls[:-1]) == 0
            held.append(sum(1 for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)))
            batch = images(8)
            batches.append(weakref.ref(batch))
            yield batch, number

    monkeypatch.setattr(Call, "__init__", remembered)
    method = PatternNet(network())
    gc.collect()
    gc.disable()
    try:
        method.fit(loader())
    finally:
        gc.enable()
    assert len(calls) == 40 and max(held[2:]) == min(held[2:])
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_fitting_keeps_nothing_for_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Tensor] = []
    monkeypatch.setattr("relprop.propagation.facts.saved._pack", lambda slots, tensor: saved.append(tensor))
    PatternNet(network()).fit([images()])
    assert not saved
    model = network()
    with pytest.raises(ModelError, match="takes a gradient"):
        PatternNet(Differentiating(model)).fit([images()])


class Differentiating(nn.Module):
    """A model that asks for a gradient in its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return gradient


def test_fitting_writes_nothing_to_the_model() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # a caller's mode changes nothing
        method = PatternNet(model).fit([images()])
    with torch.inference_mode():
        again = PatternNet(model).fit([images()])
    for unit, pattern in method.patterns.items():
        assert torch.equal(again.patterns[unit].directions["relu+"], pattern.directions["relu+"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
