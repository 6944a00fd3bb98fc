"""The quick tests on the lowest and the highest versions that the package claims: ``nox``."""

import nox

LOWEST = ("torch==2.6.0", "numpy==2.2.6")
HIGHEST = ("torch==2.13.0", "numpy==2.2.6")
# What the tests of operations, rules, propagation, methods and metrics need; the zoo has versions of its own.
TOOLS = ("pytest", "matplotlib", "safetensors", "scikit-image", "scikit-learn", "tqdm")


@nox.session(python="3.11")
@nox.parametrize("versions", [LOWEST, HIGHEST], ids=["lowest", "highest"])
def tests(session: nox.Session, versions: tuple[str, ...]) -> None:
    """Run the quick tests on one set of versions."""
    session.install(*versions, *TOOLS)
    session.install("--no-deps", "captum", ".")
    session.run("pytest", "-q", "-m", "not slow", *(session.posargs or DIRECTORIES))


DIRECTORIES = tuple(f"tests/{name}" for name in ("operations", "rules", "propagation", "attribution", "metrics"))
