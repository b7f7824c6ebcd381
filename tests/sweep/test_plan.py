"""The runs of a sweep: names, commands, order; mistakes of configurations before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_rag.errors import UserError
from lightning_rag.sweep.file import load
from lightning_rag.sweep.plan import expand, plan, word

Write = Callable[..., Path]


class TestExpand:
    """Without parsing: names and settings."""

    def test_own_and_shared_axes_and_the_cell(self, write: Write, system) -> None:
        many = system(
            grid={"model.k": [1, 3]},
            variants={"short": {"model.epochs": 1, "a": 1}, "long": {"model.epochs": 9}},
            arguments={"model.epochs": 4, "b": 0},
        )
        file = load(
            write(systems={"many": many}, grid={"data.fraction": [0.1, 1]}, arguments={"b": 1})
        )
        file = replace(file, systems=(replace(file.systems[0], cell="-frozen"),))
        settings = {setting.name: setting for setting in expand(file)}
        assert [*settings] == [
            f"many-{length}-k={k}-fraction={share}-frozen"
            for length in ("short", "long")
            for k in (1, 3)
            for share in (0.1, 1)
        ]
        one = settings["many-long-k=3-fraction=0.1-frozen"]
        assert one.arguments == {"model.epochs": 9, "b": 0, "model.k": 3, "data.fraction": 0.1}
        assert one.base == "many-long-k=3-fraction=0.1"
        assert settings["many-short-k=1-fraction=1-frozen"].arguments["a"] == 1

    def test_own_axes_win_over_shared_ones(self, write: Write, system) -> None:
        systems = {"a": system(grid={"model.k": [1]})}
        (setting,) = expand(load(write(systems=systems, variants={"s": {"model.k": 5, "x": 2}})))
        assert (setting.arguments["model.k"], setting.arguments["x"]) == (1, 2)

    def test_axes_with_the_same_last_part_are_written_out(self, write: Write, system) -> None:
        grid = {"generator.source": ["tiny"], "encoder.source": ["tiny"], "model.k": [1]}
        (setting,) = expand(load(write(systems={"a": system(grid=grid)})))
        assert setting.name == "a-generator.source=tiny-encoder.source=tiny-k=1"

    def test_configs_of_a_variant_come_last(self, write: Write, tmp_path: Path, system) -> None:
        (tmp_path / "more.yaml").touch()
        systems = {"a": system(configs=[str(tmp_path / "sweep.yaml")])}
        variants = {"m": {"configs": [str(tmp_path / "more.yaml")], "model.k": 1}}
        (setting,) = expand(load(write(systems=systems, variants=variants)))
        assert [Path(config).name for config in setting.configs][-2:] == ["sweep.yaml", "more.yaml"]
        assert "configs" not in setting.arguments

    def test_two_settings_of_one_name(self, write: Write, system) -> None:
        systems = {"a": system(grid={"model.k": [1]}), "a-k=1": system()}
        with pytest.raises(UserError, match="systems: 2 of them would be called a-k=1"):
            expand(load(write(systems=systems)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("some text", "--key=some text"),
        (True, "--key=true"),
        (None, "--key=null"),
        (0.001, "--key=0.001"),
        ({"a.b": 7e-5}, '--key={"a.b": 7e-05}'),
        ([1, "x"], '--key=[1, "x"]'),
    ],
)
def test_words(value: object, expected: str) -> None:
    assert word("key", value) == expected


class TestPlan:
    def test_commands_and_folders(self, write: Write, system, tmp_path: Path) -> None:
        systems = {"plain": system("no_retrieval"), "rag": system(grid={"model.k": [1, 2]})}
        runs = plan(
            load(write(systems=systems, seeds=[0, 2])),
            runs=tmp_path / "runs",
            extra={"data.root": "/d"},
        )
        assert [run.name for run in runs] == [
            *("plain/seed=0", "plain/seed=2"),
            *("rag-k=1/seed=0", "rag-k=1/seed=2", "rag-k=2/seed=0", "rag-k=2/seed=2"),
        ]
        last = runs[-1]
        below = "tried/synthetic_relations/rag4re/rag-k=2/seed=2"
        assert last.folder == tmp_path / "runs" / below
        assert last.log == last.folder.with_name("seed=2.log")
        assert (last.method, last.data, last.fraction) == ("Rag4re", "synthetic_relations", 1.0)
        assert last.train
        assert last.after == ()
        assert last.words[0] == "--config"
        for expected in (
            "--model.k=2",
            "--data.root=/d",
            "--seed_everything=2",
            "--variant=rag-k=2",
        ):
            assert expected in last.words
        assert last.words.index("--data.root=/d") > last.words.index("--model.k=2")
        assert len({run.configuration for run in runs}) == len(runs)

    def test_the_hash_is_that_of_the_settings(self, write: Write, tmp_path: Path) -> None:
        def hashes(**keys: object) -> set[str]:
            planned = plan(load(write(**keys)), runs=tmp_path)
            return {run.configuration for run in planned}

        assert hashes() == hashes(name="another") == hashes(seeds=[0])
        assert not hashes() & hashes(grid={"data.fraction": [0.5]})

    def test_what_a_search_found(self, write: Write, system, tmp_path: Path) -> None:
        file = load(write(systems={"a": system(), "b": system()}))
        file = replace(file, systems=(*file.systems, replace(file.systems[0], cell="-frozen")))
        runs = plan(file, runs=tmp_path, found={"a": {"model.k": 7}})
        found = {run.system: "--model.k=7" in run.words for run in runs}
        assert found == {"a": True, "a-frozen": True, "b": False}


class TestMistakesOfConfigurations:
    def test_a_misspelt_key_names_the_system(self, write: Write, system, tmp_path: Path) -> None:
        systems = {
            "good": system(),
            "bad": system(arguments={"model.epoch": 1}),
            "worse": system(grid={"data.fractoin": [1, 2]}),
        }
        path = write(systems=systems)
        with pytest.raises(UserError) as mistake:
            plan(load(path), runs=tmp_path)
        message = str(mistake.value)
        assert f"{path}: systems.bad: " in message
        assert "Option 'epoch' is not accepted" in message
        assert f"{path}: systems.worse: unrecognized arguments: --data.fractoin=1" in message
        assert "good" not in message

    def test_a_misspelt_key_of_a_file_names_the_file(
        self, write: Write, system, tmp_path: Path
    ) -> None:
        file = tmp_path / "bad.yaml"
        file.write_text("model:\n  class_path: lightning_rag.methods.rag4re.Rag4re\n"
                        "  init_args: {kk: 3}\n")  # fmt: skip
        systems = {"a": system(configs=[str(file)])}
        with pytest.raises(
            UserError, match=r"systems\.a: .*bad\.yaml: (.|\n)*'kk' is not accepted"
        ):
            plan(load(write(systems=systems)), runs=tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model.epochs": "three"}, "Expected a <class 'int'>"),
            ({"model.k": "${nothing.at.all}"}, "not found"),
            ({"data.first_stage": "lightning_rag.data.candidates.BM26"}, "BM26"),
        ],
    )
    def test_illegal_values(
        self, write: Write, system, tmp_path: Path, arguments: object, message: str
    ) -> None:
        with pytest.raises(UserError, match=r"systems\.a: ") as mistake:
            plan(load(write(systems={"a": system(arguments=arguments)})), runs=tmp_path)
        assert message in str(mistake.value)

    def test_no_method(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"systems\.a: "):
            plan(load(write(systems={"a": {}})), runs=tmp_path)


class TestBeginWith:
    def test_the_same_values_of_the_shared_axes(self, write: Write, system, tmp_path: Path) -> None:
        systems = {
            "further": system(begin_with="first"),
            "swapped": system(begin_with="many-k=2", train=False),
            "other": system("no_retrieval", begin_with="first", train=False),
            "first": system(seeds=[0, 1]),
            "many": system(grid={"model.k": [2, 3]}),
            "untrained": system(train=False),
        }
        file = load(write(systems=systems, seeds=[1], grid={"data.fraction": [0.5, 1]}))
        runs = {run.name: run for run in plan(file, runs=tmp_path)}
        names = [*runs]
        further = runs["further-fraction=0.5/seed=1"]
        assert further.after == ("first-fraction=0.5/seed=1",)
        weights = runs[further.after[0]].folder / "checkpoints" / "best.ckpt"
        assert f"--initial_weights={weights}" in further.words
        assert names.index(further.name) > names.index(further.after[0])
        assert "further-fraction=0.5/seed=0" not in runs
        swapped = runs["swapped-fraction=1/seed=1"]
        assert swapped.after == ("many-k=2-fraction=1/seed=1",)
        assert not swapped.train
        weights = runs[swapped.after[0]].best
        assert f"--ckpt_path={weights}" in swapped.words
        other = runs["other-fraction=1/seed=1"]
        assert f"--initial_weights={runs[other.after[0]].best}" in other.words
        untrained = runs["untrained-fraction=1/seed=1"]
        assert untrained.after == ()
        assert not any(word.startswith("--ckpt_path") for word in untrained.words)
        hashes = {run.configuration for run in runs.values()}
        assert len(hashes) == len(runs)

    @pytest.mark.parametrize(
        ("systems", "message"),
        [
            (
                {"a": {"begin_with": "none"}},
                r"systems\.a\.begin_with: there is no system none; legal: a",
            ),
            (
                {"a": {"begin_with": "b"}, "b": {"grid": {"model.k": [1, 2]}}},
                "there is no system b; legal: a, b-k=1, b-k=2",
            ),
            ({"a": {"begin_with": "b"}, "b": {"train": False}}, "b trains nothing"),
            (
                {"a": {"begin_with": "b", "seeds": [0, 3]}, "b": {"seeds": [0]}},
                r"b has the seeds \[0\], a \[0, 3\]",
            ),
            ({"a": {"begin_with": "a"}}, "begin with each other: a -> a"),
            (
                {"a": {"begin_with": "b"}, "b": {"begin_with": "c"}, "c": {"begin_with": "a"}},
                "systems begin with each other: (a|b|c) -> ",
            ),
        ],
    )
    def test_mistakes(
        self, write: Write, system, tmp_path: Path, systems: dict, message: str
    ) -> None:
        file = load(write(systems={name: system(**keys) for name, keys in systems.items()}))
        with pytest.raises(UserError, match=message):
            plan(file, runs=tmp_path)
