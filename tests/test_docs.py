"""The pages of docs/: their commands parse, their links lead somewhere, their example works."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from lightning_rag import cli

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
RUNNING = ("fit", "validate", "test", "predict")
START = ["python", "-m", "lightning_rag.cli"]
PLACES = ("London", "Paris", "Rome", "Oslo")
# What stands for a finished run of a page's method, where it writes RUN/config.yaml.
RUN = ("base", "data/synthetic_relations", "backbone/tiny")
METHODS = {"ruie": "ruie", "etrag": "etrag", "dro": "dro"}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(page), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each command of a page's console blocks."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def runs() -> list[tuple[str, list[str]]]:
    """Each distinct command of the pages that takes configurations, with its page."""
    found: dict[tuple[str, ...], str] = {}
    for page in PAGES[1:]:  # the README's are run by tests/test_readme.py
        for words in commands(page):
            if words[:3] == START and words[3] in RUNNING and "…" not in "".join(words):
                found.setdefault(tuple(words[3:]), page.stem)
    return [(page, list(words)) for words, page in found.items()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the project's configurations and the page's example."""
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    page = REPOSITORY / "docs" / "bring_your_own.md"
    (reader,), (config,) = blocks(page, "python"), blocks(page, "yaml")
    (tmp_path / "my_reader.py").write_text(reader, encoding="utf-8")
    (tmp_path / "my_data.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    return tmp_path


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(*one, id=f"{one[0]}-{n}") for n, one in enumerate(runs())]
)
def test_commands_parse(
    page: str, words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file is there and every key is known; nothing is run."""
    names = [f"configs/{name}.yaml" for name in (*RUN, f"method/{METHODS.get(page, 'rag4re')}")]
    finished = [word for name in names for word in ("--config", name)][1:]
    given: list[str] = []
    for word in words:
        given += finished if word == "RUN/config.yaml" else [word]
    with pytest.raises(SystemExit) as stop:
        cli.main([*given, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_and_test_files_are_there(page: Path) -> None:
    for words in commands(page):
        for word in words:
            if re.fullmatch(r"(experiments|benchmarks|tests|configs)/\S+\.(py|yaml)", word):
                assert (REPOSITORY / word).is_file(), f"{page.name}: {word}"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text(file), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = text(REPOSITORY / "docs" / "README.md")
    for page in PAGES[1:]:
        if page.name != "README.md":
            assert f"({page.relative_to(REPOSITORY / 'docs')})" in index


def test_every_method_has_a_page() -> None:
    pages = "".join(map(text, PAGES[1:]))
    for path in (REPOSITORY / "configs" / "method").glob("*.yaml"):
        assert f"configs/method/{path.name}" in pages, path.name


def test_the_reader_of_the_page(here: Path) -> None:
    """A user's own reader, as the page has it, trained on and tested."""
    (here / "my_data").mkdir()
    passages = [{"id": f"p{n}", "text": f"Ada {n} lives in {PLACES[n % 4]}."} for n in range(30)]
    questions = [
        {
            "id": f"q{n}",
            "question": f"Where does Ada {n} live?",
            "answers": f"{PLACES[n % 4]}|the city of {PLACES[n % 4]}",
            "relevant": f"p{n}",
        }
        for n in range(30)
    ]
    for name, rows in (("passages", passages), ("questions", questions)):
        with (here / "my_data" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    (words,) = [w for _, w in runs() if "my_data.yaml" in w]
    small = ["--model.epochs=1", "--generator.tiny.hidden_size=16", "--trainer.accelerator=cpu"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    assert cli.main([*words, *small, *quiet]) == 0
    (folder,) = [path.parent for path in here.rglob("metrics.json")]
    assert "recall@1" in json.loads((folder / "metrics.json").read_text())["test"]
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6  # a fifth of the questions
    assert all(len(row["target"]) == 2 for row in rows)
