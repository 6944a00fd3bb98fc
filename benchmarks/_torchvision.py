"""Import torchvision where its compiled operators are missing or do not fit the installed PyTorch.

torchvision registers fake kernels for its compiled operators while it is imported, and that fails if the
operators were not loaded. No classification model needs them: their names suffice.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch

# Definitions live as long as their library object.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, with its operators declared first if the plain import fails for want of them.

    Call this before importing timm or `zennit.torchvision`, which import torchvision themselves.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    if not _libraries:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in sorted(_operators_with_fake_kernels()):
            library.define(f"{operator}(Tensor input) -> Tensor")
        _libraries.append(library)
    return importlib.import_module("torchvision")


def _operators_with_fake_kernels() -> set[str]:
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        raise ImportError("torchvision is not installed")
    source = Path(specification.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    return set(re.findall(r"""register_fake\(["']torchvision::(\w+)["']\)""", source))
