import pytest

from lightning_rag.comparison.differences import section
from lightning_rag.comparison.runs import System


@pytest.fixture
def make_system(make_run):
    def make(name, *configs):
        runs = (make_run(name, seed=seed, config=one) for seed, one in enumerate(configs))
        return System(name, tuple(runs))

    return make


def tables(systems):
    made = section(systems)
    return {} if made is None else {table.name: table.rows for table in made.tables}


def test_only_what_differs_is_shown(make_system):
    systems = [
        make_system("a", {"data": {"fraction": 0.1, "batch_size": 8}, "model": {"k": 3}}),
        make_system("b", {"data": {"fraction": 0.5, "batch_size": 8}, "model": {"k": 3.0}}),
    ]
    assert tables(systems) == {
        "differences": (("data.fraction", "0.1", "a"), ("data.fraction", "0.5", "b"))
    }


def test_names_paths_and_seeds_are_no_differences(make_system):
    systems = [
        make_system(
            name,
            {
                "seed_everything": n,
                "variant": name,
                "runs": f"runs{n}",
                "data": {"root": f"/data/{n}", "cache_dir": None},
                "trainer": {"enable_progress_bar": bool(n)},
            },
        )
        for n, name in enumerate("ab")
    ]
    assert tables(systems) == {}


def test_settings_of_one_method_stand_apart(make_system):
    dro = {"model": {"class_path": "x.methods.dro.Dro", "init_args": {"k": 3, "samples": 8}}}
    rag = {"model": {"class_path": "x.methods.rag4re.Rag4re", "init_args": {"k": 5}}}
    none = {"model": {"class_path": "x.methods.no_retrieval.NoRetrieval", "init_args": {}}}
    found = tables([make_system("dro", dro), make_system("rag", rag), make_system("none", none)])
    assert found["differences"] == (
        ("model.class_path", "Dro", "dro"),
        ("model.class_path", "Rag4re", "rag"),
        ("model.class_path", "NoRetrieval", "none"),
        ("model.init_args.k", "3", "dro"),
        ("model.init_args.k", "5", "rag"),
    )
    assert ("dro", "model.init_args.samples", "8") in found["own_settings"]


def test_null_is_not_given(make_system):
    found = tables([make_system("a", {"data": {"size": None}}), make_system("b", {"data": {}})])
    assert found.get("differences") is None


def test_the_most_frequent_value_comes_first_and_is_not_listed(make_system):
    systems = [make_system(f"s{n}", {"k": 1 if n else 2}) for n in range(6)]
    assert tables(systems) == {"differences": (("k", "1", "the other 5"), ("k", "2", "s0"))}


def test_a_setting_that_differs_from_seed_to_seed(make_system):
    systems = [make_system("a", {"k": 1}, {"k": 2}, {"k": 1}), make_system("b", {"k": 1}, {"k": 1})]
    assert tables(systems)["differences"] == (
        ("k", "1 (seed 0, 2); 2 (seed 1)", "a"),
        ("k", "1", "b"),
    )


def test_weights_of_the_same_seed_are_one_setting(make_system):
    systems = [
        make_system(
            "a",
            *({"initial_weights": f"runs/x/seed={n}/checkpoints/best.ckpt"} for n in range(2)),
        ),
        make_system("b", {"initial_weights": None}, {}),
    ]
    assert tables(systems) == {
        "own_settings": (("a", "initial_weights", "runs/x/seed=…/checkpoints/best.ckpt"),)
    }


def test_one_system_differs_from_nothing(make_system):
    assert section([make_system("a", {"k": 1})]) is None
