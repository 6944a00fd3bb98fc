"""Every public name stands in the reference, and its docstring has the parts that belong to what it is.

What is asked, once for all:

- a rule says how it shares (Definition), what a bias keeps, when it conserves, its fields, what construction refuses
  and where it comes from, and shows one call;
- a method says the same of its map. What ``attribute`` takes, returns and raises is said there, by its own docstring or
  by that of ``Attribution.attribute``; that the model must be an ``nn.Module`` is said once, at ``Method``;
- a metric adds the range and the direction. What it returns is a line of shapes, or a class whose fields say theirs;
- a value says what its fields are, and shows one, or leads to the function that returns it, which shows it;
- an error says when it comes (the first line) and what to do; every member of an enum says what it means;
- arguments that several functions take are written once: ``a, b: as in ``f``.`` stands for what ``f`` says of them, and
  ``options: see :class:`...`.`` for a ``TypedDict``. References are followed here;
- what ``relprop.metrics`` and ``relprop.visual`` raise is what their docstrings say, no error more and none less.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import pytest
import torch
from torch import nn

import relprop
from relprop.errors import RelpropError, RelpropWarning
from relprop.rules import LinearRule, Rule

API = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
MODULES = ("relprop", "relprop.rules", "relprop.operations", "relprop.metrics", "relprop.visual")
HELPERS = {
    "baseline_of", "blurred", "evaluate", "interpolation", "neighbours_mean", "noisy_linear_imputation",
    "random_neighbours", "rewrites", "shifted_model", "smoothed", "trajectory", "translated", "translation",
}  # fmt: skip
"""Functions of ``relprop.metrics`` that measure nothing: they make neighbours, baselines, paths, models, tables."""

NEEDED: dict[str, tuple[str, ...]] = {
    "base": (">>>",),
    "rule": ("Definition", "Conserves", "Source", ">>>"),
    "linear rule": ("Definition", "Bias", "Conserves", "Source", ">>>"),
    "method": ("Definition", "Conserves", "Source", ">>>"),
    "metric": ("Definition", "Range", "Args", "Raises", "Source", ">>>"),
    "figure": ("Definition", "Args", "Raises", ">>>"),
    "function": (">>>",),
    "error": ("What to do",),
    "value": (),
    "enum": (),
    "alias": (),
}
"""The parts of a docstring, by what the name is; arguments, results and members are looked at one by one."""

TITLE = re.compile(
    "^(Definition|Bias|Conserves|Range|Args|Attributes|Shapes|Returns|Yields|Raises|Warns|Source|What to do):(?: |$)"
)
REFERENCE = re.compile(r"^(?:as|see|those|what) (?:in |of )?(?::\w+:`([\w.]+)`|``([\w.]+)``)")
FOUND_BY = re.compile(r"doi:|arXiv:|https?://|relprop's own")

# Names -------------------------------------------------------------------------------------------


@cache
def found(name: str) -> Any:
    """Return what has a dotted name, None where nothing has."""
    words = name.split(".")
    for split in range(len(words) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(words[:split]))
        except ImportError:
            continue
        for word in words[split:]:
            thing = getattr(thing, word, None)
        return thing
    return None


def places(thing: Any) -> list[str]:
    """Return the packages in which the neighbours of a thing are looked for."""
    words = thing.__module__.split(".")
    return [thing.__module__, ".".join(words[:2]), *MODULES[:2]]


def public() -> dict[str, Any]:
    """Return every public thing by a name of it; some stand in two modules."""
    names = [f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__]
    return {name: found(name) for name in {id(found(name)): name for name in reversed(names)}.values()}


PUBLIC = public()


def kind(name: str) -> str:
    """Return what a public name is, which decides what its docstring needs."""
    thing, module = PUBLIC[name], name.rpartition(".")[0]
    if inspect.isfunction(thing):
        metric = module == "relprop.metrics" and thing.__name__ not in HELPERS
        return "metric" if metric else "figure" if module == "relprop.visual" else "function"
    if not isinstance(thing, type):
        return "alias"
    if issubclass(thing, (Rule, relprop.Method)):
        if inspect.isabstract(thing) or thing is Rule:
            return "base"
        return "linear rule" if issubclass(thing, LinearRule) else "rule" if issubclass(thing, Rule) else "method"
    return "error" if issubclass(thing, BaseException) else "enum" if issubclass(thing, enum.Enum) else "value"


# What a docstring says ---------------------------------------------------------------------------


def parts(doc: str) -> dict[str, str]:
    """Return the parts of a docstring by their titles: "" is the plain text, ">>>" the doctest."""
    said, title = {"": ""}, ""
    for line in doc.splitlines():
        match = TITLE.match(line)
        if match or line.startswith(">>>") or not line.strip():
            title = match[1] if match else line[:3].strip()
        said[title] = f"{said.get(title, '')}{line[match.end() :] if match else line}\n"
    return said


def said_of(thing: Any, *titles: str) -> dict[str, str]:
    """Return what sections of a docstring say, ``a, b: text`` of each name."""
    said, found_parts = {}, parts(inspect.getdoc(thing) or "")
    for title in titles:
        for entry in re.split(r"^    (?=\S)", found_parts.get(title, ""), flags=re.MULTILINE)[1:]:
            names, _, text = entry.partition(": ")
            said.update(dict.fromkeys(names.split(", "), " ".join(text.split())))
    return said


def referred(text: str, thing: Any) -> Any:
    """Return what a text that begins with a reference refers to, the text itself where that is nothing; else None."""
    match = REFERENCE.match(text)
    if match is None or is_typeddict(thing):
        return None
    name, owner = match[1] or match[2], thing.__qualname__.rpartition(".")[0]
    near = [f"{thing.__module__}.{owner}"] if owner else []
    candidates = (found(each) for each in (name, *(f"{place}.{name}" for place in (*near, *places(thing)))))
    return next((each for each in candidates if each is not None), text)


def documented(thing: Any) -> set[str]:
    """Return the arguments or fields that a docstring documents; where it refers to others, if these do."""
    names: set[str] = set()
    for name, text in said_of(thing, "Args", "Attributes").items():
        other = referred(text, thing)
        if name == "options" and other is not None:
            names |= {name, *documented(other)}
        elif other is None or other is thing or name in documented(other):
            names.add(name)
    if is_typeddict(thing):
        for other in vars(sys.modules[thing.__module__]).values():
            if is_typeddict(other) and other.__annotations__.keys() < thing.__annotations__.keys():
                names |= documented(other)
    return names


def taken(thing: Any) -> list[str]:
    """Return the arguments of a function, or those that a class is made from."""
    if isinstance(thing, type) and issubclass(thing, (BaseException, enum.Enum, dict)):
        return []
    return [name for name in inspect.signature(thing).parameters if name != "self" and not name.startswith("_")]


def says_what_returns(function: Any) -> bool:
    """Say whether a function's docstring tells what comes back, or the class does that it returns."""
    said = parts(inspect.getdoc(function) or "")
    given = inspect.signature(function).return_annotation
    made = [found(f"{place}.{given}") for place in places(function)]
    return bool(
        said.keys() & {"Returns", "Shapes", "Yields"}
        or re.match(r"(Return|Yield)\b|Say whether", said[""])
        or given == "None"
        or any(isinstance(each, type) and said_of(each, "Attributes") for each in made)
    )


def shown_by(thing: Any) -> Iterator[Any]:
    """Yield the functions and methods that a docstring mentions and that show a call of theirs."""
    for match in re.finditer(r"`([A-Za-z][\w.]*)`", inspect.getdoc(thing) or ""):
        for each in map(found, (match[1], *(f"{place}.{match[1]}" for place in (*places(thing), *MODULES)))):
            if inspect.isroutine(each) and ">>>" in (inspect.getdoc(each) or ""):
                yield each


def strings_behind(statements: list[ast.stmt]) -> set[str]:
    """Return the names that are assigned to and have a string behind them."""
    return {
        ast.unparse(one.targets[0])
        for one, two in pairwise(statements)
        if isinstance(one, ast.Assign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant)
    }


def missing(name: str, thing: Any, what: str) -> list[str]:
    """Return what the docstring of a public name lacks."""
    if what == "alias":
        words = strings_behind(ast.parse(inspect.getsource(sys.modules[thing.__module__])).body)
        return [] if name.rpartition(".")[2] in words else ["a docstring"]
    doc = inspect.cleandoc(thing.__doc__ or "")
    if not doc or doc.startswith(f"{thing.__name__}("):  # what dataclasses write themselves
        return ["a docstring"]
    said = parts(doc)
    lacks = [title for title in NEEDED[what] if not said.get(title, "").strip()]
    if not re.match(r"[A-Z(`][^\n]*(\n[^\n]+)*[.:?]\n", f"{doc}\n"):
        lacks.append("a sentence")
    if "Source" in said and not FOUND_BY.search(said["Source"]):
        lacks.append("a doi, or what else finds the source")
    if what != "base":
        lacks += [f"{each} in Args" for each in taken(thing) if each not in documented(thing)]
    if inspect.isfunction(thing) and not says_what_returns(thing):
        lacks.append("Returns")
    if what == "value" and ">>>" not in said and not any(shown_by(thing)):
        lacks.append(">>>, or the function that returns it")
    if what == "method":
        attribute = parts(inspect.getdoc(thing.attribute) or "")
        lacks += [f"{title} of attribute" for title in ("Args", "Returns", "Raises") if title not in attribute]
    if what == "enum":
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
        assert isinstance(definition, ast.ClassDef)
        lacks += sorted(thing.__members__.keys() - strings_behind(definition.body))
    return lacks


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_docstring_has_its_parts(name: str) -> None:
    assert not missing(name, PUBLIC[name], kind(name))


def test_a_docstring_that_lacks_something_is_found() -> None:
    class Bare:
        """One sentence.

        Args:
            a: said.
            c: as in ``nothing_that_exists``.
        """

        def __init__(self, a: int, b: int, c: int) -> None: ...

    assert missing("Bare", Bare, "value") == ["b in Args", "c in Args", ">>>, or the function that returns it"]
    assert missing("Bare", Bare, "metric")[:5] == ["Definition", "Range", "Raises", "Source", ">>>"]
    assert missing("Bare", type("Bare", (), {}), "error") == ["a docstring"]


# The reference -----------------------------------------------------------------------------------


def in_reference() -> tuple[set[str], set[str]]:
    """Return the names that docs/api.md shows, and those of the members that it lists."""
    names, members = set(), set()
    for what, name, options in re.findall(r"^\.\. auto(\w+):: (\S+)\n((?:   :.*\n)*)", API, re.MULTILINE):
        listed = {key: re.split(r",\s*", words.strip()) for key, words in re.findall(r":([\w-]+):(.*)", options)}
        if what == "module" and "members" in listed:
            own = {each for each, thing in vars(found(name)).items() if getattr(thing, "__module__", "") == name}
            names |= {f"{name}.{each}" for each in own.difference(listed.get("exclude-members", ()))}
        elif what != "module":
            names.add(name)
            members |= {f"{name}.{each}" for each in listed.get("members", ())}
    return names, members


NAMES, MEMBERS = in_reference()
OPTIONS = [found(name) for name in sorted(NAMES) if is_typeddict(found(name))]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_stands_in_the_reference(name: str) -> None:
    assert any(found(listed) is PUBLIC[name] for listed in NAMES), f"docs/api.md does not show {name}"


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_member_says_what_it_takes_and_returns(name: str) -> None:
    owner, _, field = name.rpartition(".")
    member = found(name)
    if member is None:  # an annotation without a value
        assert field in documented(found(owner))
        return
    doc = inspect.getdoc(member) or ""
    assert doc, "no docstring"
    if inspect.isroutine(member):
        unsaid = [each for each in taken(member) if each not in documented(member)]
        assert not [each for each in unsaid if not re.search(rf"``[^`]*\b{each}\b", doc)]
        assert says_what_returns(member)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__name__)
def test_options_are_documented_with_their_defaults(options: Any) -> None:
    hints = get_type_hints(options, include_extras=True)
    assert hints.keys() <= documented(options)
    for name, text in said_of(options, "Args").items():
        shown = text.rpartition("Default: ")[2].strip("`.")
        assert ast.literal_eval(shown) == hints[name].__metadata__[0].value, name


# What is raised ----------------------------------------------------------------------------------

NOT_BY_ITSELF = {"relprop.metrics.smoothed": {"MissingExtraError"}}
"""The explainer that it returns asks for no progress bar."""


def declared(thing: Any) -> set[str]:
    """Return the errors that a docstring names; ``RelpropError: what ``f`` raises`` is all that ``f`` names."""
    names: set[str] = set()
    for name, text in said_of(thing, "Raises").items():
        other = referred(text, thing)
        others = {name} if other is None else declared(other)
        names |= others if name == "RelpropError" else {name} & others
    return names


@cache
def looked_at(thing: Any) -> tuple[frozenset[str], frozenset[Any]]:
    """Return the errors that a function or class raises itself, and those of relprop that it names."""
    plain = inspect.unwrap(thing)
    space = vars(sys.modules[plain.__module__])
    raises, names = set(), set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(plain)))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raises.add(space.get(ast.unparse(node.exc).partition("(")[0]))
        elif isinstance(node, ast.Name):
            names.add(node.id)
    others = {space[name] for name in names if inspect.isfunction(space.get(name)) or inspect.isclass(space.get(name))}
    errors = {each for each in (*raises, *others) if isinstance(each, type) and issubclass(each, BaseException)}
    named = {each.__name__ for each in errors & raises if issubclass(each, RelpropError)}
    return frozenset(named), frozenset(each for each in others - errors if each.__module__.startswith("relprop."))


def raised(function: Any) -> set[str]:
    """Return the errors of a function and of all that it leads to, by name, in relprop."""
    seen, left, errors = {function}, [function], set[str]()
    while left:
        own, named = looked_at(left.pop())
        errors |= own
        left += named - seen
        seen |= named
    return errors


@pytest.mark.parametrize("name", [n for n in sorted(PUBLIC) if re.match(r"relprop\.(metrics|visual)\.[a-z]", n)])
def test_raises_what_it_says(name: str) -> None:
    """What the explainer and the model raise is theirs."""
    assert declared(PUBLIC[name]) == raised(PUBLIC[name]) - NOT_BY_ITSELF.get(name, set())


def test_errors_and_warnings_that_are_named_exist() -> None:
    for name in (*PUBLIC, *MEMBERS):
        for title, root in (("Raises", RelpropError), ("Warns", RelpropWarning)):
            assert all(issubclass(getattr(relprop, each), root) for each in said_of(found(name), title)), name


def constructed() -> dict[str, dict[str, Any]]:
    """Return arguments that each rule, method and value takes which users make themselves."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    method = relprop.Gradient(model)
    fits: dict[str, Any] = {
        "low": 0.0, "high": 1.0, "rho": torch.abs, "indices": (0,), "model": model, "layer": "0", "method": method,
        "methods": [method], "seed": "1", "output": "relevance", "p": 1.0, "n": 0.0,
    }  # fmt: skip
    names = [name for name in PUBLIC if kind(name) in ("rule", "linear rule", "method")]
    names += ["relprop.Contract", "relprop.Unit", "relprop.rules.Group"]
    taking = {name: inspect.signature(PUBLIC[name]).parameters.values() for name in names}
    return {name: {each.name: fits[each.name] for each in taking[name] if each.default is each.empty} for name in names}


CONSTRUCTED = constructed()


@pytest.mark.parametrize("wrong", [object(), -1.5, "no such name"], ids=["object", "negative", "word"])
@pytest.mark.parametrize("name", sorted(CONSTRUCTED))
def test_what_construction_refuses_is_said(name: str, wrong: object) -> None:
    """But for the model, of which it is said once, at ``Method``."""
    make, fits = PUBLIC[name], CONSTRUCTED[name]
    make(**fits)
    said = tuple(getattr(relprop, each) for each in said_of(make, "Raises"))
    for argument in taken(make):
        error = refused(make, {**fits, argument: wrong}) if argument != "model" else None
        assert error is None or isinstance(error, said), argument


def refused(make: Any, arguments: dict[str, Any]) -> RelpropError | None:
    """Return the error of a construction; none of Python's own, of what cannot be iterated over."""
    try:
        make(**arguments)
    except RelpropError as error:
        return error
    except TypeError:
        return None
    return None
