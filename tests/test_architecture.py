"""The directions of imports and a few forbidden constructs, read off the source of the package.

`violations` is tried on invented packages too, each breaking one rule: a check that cannot fail
would say nothing about the package.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_rag"

# Modules without a part of their own that everything may build on.
LEAVES = {"types", "errors", "files", "configuration"}
# part of the package -> what of the package it may import besides itself
ALLOWED: Mapping[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "files": {"errors"},
    "configuration": set(),
    "devices": set(),
    "functional": set(),
    "metrics": {"functional", *LEAVES},
    "tasks": {"functional", "metrics", *LEAVES},
    "data": {"functional", "metrics", "tasks", *LEAVES},
    "backbones": {"functional", *LEAVES},
    "retrieval": {"functional", "tasks", "data", "backbones", *LEAVES},
    "methods": {"functional", "metrics", "tasks", "data", "backbones", "retrieval", *LEAVES},
    # Of the methods only what they share: no_concrete_method below.
    "callbacks": {"functional", "metrics", "methods", *LEAVES},
    "comparison": {"functional", "metrics", *LEAVES},
    "sweep": {"cli", "comparison", *LEAVES},
    "export": {"backbones", *LEAVES},
    "cli": {
        *("functional", "metrics", "tasks", "data", "backbones", "retrieval", "methods"),
        *("callbacks", "comparison", "sweep", "export", "devices", *LEAVES),
    },
}
# Parts that do without third-party packages other than these.
THIRD_PARTY: Mapping[str, set[str]] = {"functional": {"torch"}, "types": {"torch"}, "errors": set()}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
LONGEST = 450  # lines of a file
DANGEROUS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False}


class Module:
    """A parsed file of the package, and what it imports."""

    def __init__(self, root: Path, path: Path) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)  # without the package's
        self.part = parts[0]
        source = path.read_text(encoding="utf-8")
        self.lines = len(source.splitlines())
        self.tree = ast.parse(source, str(path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and absolute dotted name of everything imported, at any depth of the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                if node.level:
                    above = [PACKAGE, *filter(None, self.name.split("."))]
                    keep = len(above) - node.level + self.is_package
                    origin = ".".join([*above[:keep], *filter(None, [origin])])
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)

    def methods(self) -> set[str]:
        """Names of the classes here that derive from Method."""
        return {
            node.name
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ClassDef) and any(last(b) == "Method" for b in node.bases)
        }


def last(node: ast.expr) -> str:
    """Return the last name of a dotted expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def violations(root: Path) -> list[str]:
    """Return every breach of the rules in the package that lies at `root`."""
    modules = [Module(root, path) for path in sorted(root.rglob("*.py"))]
    concrete = {module.name: module.methods() for module in modules if module.part == "methods"}
    concrete = {name: classes for name, classes in concrete.items() if classes}
    classes = set().union(*concrete.values())
    found = []
    for module in modules:
        breaches = [
            *directions(module),
            *no_concrete_method(module, concrete),
            *no_vague_name(module),
            *no_long_file(module),
            *no_class_test(module, classes),
            *no_pickle(module),
        ]
        found += [f"{module.name or PACKAGE}:{line}: {what}" for line, what in breaches]
    return found


def directions(module: Module) -> Iterator[tuple[int, str]]:
    """Imports of other parts of the package, or of packages, that a part must do without."""
    if module.part == "__init__":
        return
    if module.part not in ALLOWED:
        yield 1, f"unknown part {module.part}: say in ALLOWED what it may import"
        return
    for line, name in module.imports():
        top, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        if top == PACKAGE:
            if part not in {"", "__version__", module.part, *ALLOWED[module.part]}:
                yield line, f"{module.part} must not import {name}"
        elif top not in THIRD_PARTY.get(module.part, {top}) | sys.stdlib_module_names:
            yield line, f"{module.part} must not import {name}"


def no_concrete_method(
    module: Module, concrete: Mapping[str, set[str]]
) -> Iterator[tuple[int, str]]:
    """Imports of a method: by its file, or by its name out of the package of all methods."""
    if module.name == "methods":
        return
    others = [name for name in concrete if name != module.name]
    classes = set().union(*concrete.values())
    banned = {f"{PACKAGE}.{name}" for name in others}
    banned |= {f"{PACKAGE}.methods.{kind}" for kind in {"*", *classes}}
    for line, name in module.imports():
        if name in banned or name.rpartition(".")[0] in banned:
            yield line, f"a method must not be imported: {name}"


def no_vague_name(module: Module) -> Iterator[tuple[int, str]]:
    """Names that say nothing about what a module holds."""
    vague = {part.strip("_") for part in module.name.split(".")} & VAGUE
    if vague:
        yield 1, f"a module must not be called {vague.pop()}"


def no_long_file(module: Module) -> Iterator[tuple[int, str]]:
    """More than can be read at once."""
    if module.lines > LONGEST:
        yield module.lines, f"a file must not have more than {LONGEST} lines"


def no_class_test(module: Module, classes: set[str]) -> Iterator[tuple[int, str]]:
    """`isinstance` and `issubclass` with a concrete method."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and last(node.func) in ("isinstance", "issubclass"):
            tested = {
                last(e) for a in node.args[1:] for e in ast.walk(a) if isinstance(e, ast.expr)
            }
            for name in sorted(tested & classes):
                yield node.lineno, f"{last(node.func)} must not ask for {name}"


def no_pickle(module: Module) -> Iterator[tuple[int, str]]:
    """What runs code out of data: pickles, loads that allow them, code of remote repositories."""
    for line, name in module.imports():
        if name.partition(".")[0] in PICKLES:
            yield line, f"{name} must not be imported"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            literal = {k.arg: k.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if "weights_only" not in literal:
                yield node.lineno, "torch.load needs weights_only=True"
        for name, value in named_values(node):
            if isinstance(value, ast.Constant) and value.value is DANGEROUS.get(name, ...):
                yield value.lineno, f"{name}={value.value} is forbidden"


def named_values(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """What a node gives names to: arguments, defaults, variables, fields, keys of a dictionary."""
    if isinstance(node, ast.Call):
        return [(keyword.arg or "", keyword.value) for keyword in node.keywords]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [(str(key.value), value) for key, value in pairs if isinstance(key, ast.Constant)]
    if isinstance(node, ast.Assign):
        return [(last(target), node.value) for target in node.targets]
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return [(last(node.target), node.value)]
    if isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        defaults = [*zip(positional[::-1], node.defaults[::-1], strict=False)]
        keyword = zip(node.kwonlyargs, node.kw_defaults, strict=True)
        defaults += [(argument, value) for argument, value in keyword if value is not None]
        return [(argument.arg, value) for argument, value in defaults]
    return []


def test_the_package_keeps_to_its_architecture():
    assert violations(REPOSITORY / PACKAGE) == []


def test_every_part_of_the_package_was_read():
    modules = [Module(REPOSITORY / PACKAGE, p) for p in (REPOSITORY / PACKAGE).rglob("*.py")]
    assert {"tasks", "metrics", "data", "types", "errors"} <= {m.part for m in modules}


# An invented package that breaks no rule; each case below adds or replaces one file.
GOOD = {
    "__init__.py": '__version__ = "0"\n',
    "types.py": "import dataclasses\nfrom torch import Tensor\n",
    "errors.py": "",
    "functional/likelihood.py": "import math\nimport torch\nfrom torch import nn\n",
    "tasks/base.py": "from lightning_rag.metrics.text import exact_match\n",
    "metrics/text.py": "from lightning_rag.functional import likelihood\n",
    "methods/__init__.py": "from lightning_rag.methods.dro import Dro\n",
    "methods/base.py": "from .phase import Phase\nclass Method: ...\n",
    "methods/phase.py": "class Phase: ...\n",
    "methods/dro.py": "from lightning_rag.methods.base import Method\nclass Dro(Method): ...\n",
    "methods/ruie.py": "from .base import Method\nclass Ruie(Method): ...\n",
    "callbacks/phases.py": (
        "import lightning_rag\nfrom lightning_rag.methods.base import Method\n"
        "def f(m): return isinstance(m, Method)\n"
        "def g(p): return torch.load(p, weights_only=True)\n"
        "def h(p, trust_remote_code=False): return np.load(p, allow_pickle=False)\n"
    ),
}
BAD = {
    "functional imports the package": (
        ("functional/a.py", "from lightning_rag.types import RagBatch"),
        "functional.a:1: functional must not import lightning_rag.types.RagBatch",
    ),
    "functional imports another package": (
        ("functional/a.py", "import math\nimport numpy as np"),
        "functional.a:2: functional must not import numpy",
    ),
    "types imports the package": (
        ("types.py", "from .errors import UserError"),
        "types:1: types must not import lightning_rag.errors.UserError",
    ),
    "metrics imports tasks": (
        ("metrics/a.py", "from lightning_rag.tasks import base"),
        "metrics.a:1: metrics must not import lightning_rag.tasks.base",
    ),
    "tasks imports data": (
        ("tasks/a.py", "import lightning_rag.data.store"),
        "tasks.a:1: tasks must not import lightning_rag.data.store",
    ),
    "data imports backbones inside a function": (
        ("data/readers/a.py", "def f():\n    from ...backbones.encoder import Encoder"),
        "data.readers.a:2: data must not import lightning_rag.backbones.encoder.Encoder",
    ),
    "data imports methods for its types": (
        (
            "data/__init__.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from ..methods.base import Method",
        ),
        "data:3: data must not import lightning_rag.methods.base.Method",
    ),
    "data imports retrieval": (
        ("data/a.py", "from lightning_rag import retrieval"),
        "data.a:1: data must not import lightning_rag.retrieval",
    ),
    "backbones imports tasks": (
        ("backbones/a.py", "from lightning_rag.tasks.base import Task"),
        "backbones.a:1: backbones must not import lightning_rag.tasks.base.Task",
    ),
    "retrieval imports methods": (
        ("retrieval/a.py", "from lightning_rag.methods.base import Method"),
        "retrieval.a:1: retrieval must not import lightning_rag.methods.base.Method",
    ),
    "a method imports another": (
        ("methods/a.py", "from .dro import weights"),
        "methods.a:1: a method must not be imported: lightning_rag.methods.dro.weights",
    ),
    "the base imports a method": (
        ("methods/base.py", "import lightning_rag.methods.ruie"),
        "methods.base:1: a method must not be imported: lightning_rag.methods.ruie",
    ),
    "a method imports callbacks": (
        ("methods/ruie.py", "from lightning_rag.callbacks.phases import f"),
        "methods.ruie:1: methods must not import lightning_rag.callbacks.phases.f",
    ),
    "a callback imports a method's file": (
        ("callbacks/a.py", "from lightning_rag.methods import dro"),
        "callbacks.a:1: a method must not be imported: lightning_rag.methods.dro",
    ),
    "a callback imports a method by its name": (
        ("callbacks/a.py", "from lightning_rag.methods import Dro"),
        "callbacks.a:1: a method must not be imported: lightning_rag.methods.Dro",
    ),
    "the command line imports a method": (
        ("cli.py", "from lightning_rag.methods.dro import Dro"),
        "cli:1: a method must not be imported: lightning_rag.methods.dro.Dro",
    ),
    "comparison imports the base of methods": (
        ("comparison/a.py", "from lightning_rag.methods.base import Method"),
        "comparison.a:1: comparison must not import lightning_rag.methods.base.Method",
    ),
    "sweep imports methods": (
        ("sweep/a.py", "from lightning_rag import methods"),
        "sweep.a:1: sweep must not import lightning_rag.methods",
    ),
    "a part that nobody planned": (
        ("extras/a.py", ""),
        "extras.a:1: unknown part extras: say in ALLOWED what it may import",
    ),
    "a vague name": (("data/utils.py", ""), "data.utils:1: a module must not be called utils"),
    "a vague package": (
        ("data/_helpers/a.py", ""),
        "data._helpers.a:1: a module must not be called helpers",
    ),
    "a long file": (
        ("data/a.py", "\n" * 451),
        "data.a:451: a file must not have more than 450 lines",
    ),
    "a test of the class": (
        ("callbacks/a.py", "def f(m): return isinstance(m, int | methods.Dro)"),
        "callbacks.a:1: isinstance must not ask for Dro",
    ),
    "a test of one of several classes": (
        ("methods/base.py", "def f(m): return issubclass(m, (int, Ruie))"),
        "methods.base:1: issubclass must not ask for Ruie",
    ),
    "pickle": (("data/a.py", "import pickle"), "data.a:1: pickle must not be imported"),
    "an unsafe load": (
        ("callbacks/a.py", "import torch\ntorch.load(path)"),
        "callbacks.a:2: torch.load needs weights_only=True",
    ),
    "a load that is unsafe on purpose": (
        ("callbacks/a.py", "Trainer.fit(m, weights_only=False)"),
        "callbacks.a:1: weights_only=False is forbidden",
    ),
    "a load that may be unsafe": (
        ("callbacks/a.py", "def f(p, safe): return torch.load(p, weights_only=safe)"),
        "callbacks.a:1: torch.load needs weights_only=True",
    ),
    "arrays with pickles": (
        ("data/a.py", "np.load(path, allow_pickle=True)"),
        "data.a:1: allow_pickle=True is forbidden",
    ),
    "remote code by an argument": (
        ("backbones/a.py", "AutoModel.from_pretrained(s, trust_remote_code=True)"),
        "backbones.a:1: trust_remote_code=True is forbidden",
    ),
    "remote code by a default": (
        ("backbones/a.py", "def load(source, *, trust_remote_code=True): ..."),
        "backbones.a:1: trust_remote_code=True is forbidden",
    ),
    "remote code by a field": (
        ("backbones/a.py", "class Config:\n    trust_remote_code: bool = True"),
        "backbones.a:2: trust_remote_code=True is forbidden",
    ),
    "remote code by a dictionary": (
        ("backbones/a.py", 'options = {"trust_remote_code": True}'),
        "backbones.a:1: trust_remote_code=True is forbidden",
    ),
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, source in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root / PACKAGE


def test_nothing_is_wrong_with_a_good_package(tmp_path):
    assert violations(write(tmp_path, GOOD)) == []


@pytest.mark.parametrize(("file", "message"), BAD.values(), ids=BAD)
def test_each_rule_can_fail(tmp_path, file, message):
    assert violations(write(tmp_path, {**GOOD, file[0]: file[1]})) == [message]
