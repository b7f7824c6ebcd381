import json

import pytest

from lightning_rag.errors import UserError
from lightning_rag.tasks.constraints import RETACRED as RETACRED_PAIRS
from lightning_rag.tasks.constraints import TACRED as TACRED_PAIRS
from lightning_rag.tasks.labels import RETACRED, SEMEVAL2010, TABLES, TACRED
from lightning_rag.tasks.wording import LabelFinder, choose_wording, fill, prettified


def phrases(wording):
    return {label: words.phrase for label, words in wording.items()}


def test_sizes_of_the_tables():
    assert (len(SEMEVAL2010), len(TACRED), len(RETACRED)) == (19, 42, 40)
    assert sum(name.startswith("per:") for name in TACRED) == 25
    assert sum(name.startswith("org:") for name in TACRED) == 16
    assert sum(name.startswith("per:") for name in RETACRED) == 25
    assert sum(name.startswith("org:") for name in RETACRED) == 14


@pytest.mark.parametrize("name", TABLES)
def test_texts_are_distinct_and_complete(name):
    table = TABLES[name]
    loose = {"".join(c for c in words.phrase if c.isalnum()) for words in table.values()}
    assert len(loose) == len(table)
    assert len({words.clause for words in table.values()}) == len(table)
    for words in table.values():
        assert words.clause.count("{head}") == words.clause.count("{tail}") == 1
        assert words.clause.startswith("{head} ")
        assert "{" not in words.phrase


def test_semeval_branches_at_the_first_word():
    """A trie over the answers then needs one decision."""
    for texts in (
        [words.phrase for words in SEMEVAL2010.values()],
        [fill(words.clause, "", "x").strip() for words in SEMEVAL2010.values()],
    ):
        assert len({text.split()[0] for text in texts}) == len(texts)


def test_both_directions_of_semeval_name_the_same_roles():
    for label, words in SEMEVAL2010.items():
        if label.endswith("(e1,e2)"):
            other = SEMEVAL2010[label.replace("(e1,e2)", "(e2,e1)")].phrase.split()
            here = words.phrase.split()
            assert (here[0], here[-1]) == (other[-1], other[0])


def test_every_label_of_the_semeval_files(data_root):
    path = data_root / "semeval2010_task8/SemEval2010_task8_training/TRAIN_FILE.TXT"
    lines = path.read_text(encoding="utf-8").splitlines()
    labels = sorted({lines[i + 1].strip() for i in range(len(lines)) if lines[i][:1].isdigit()})
    assert len(labels) == 19
    assert set(choose_wording(labels, "semeval2010", {})) == set(SEMEVAL2010)


def test_every_label_of_the_tacrev_patches(data_root):
    labels = set()
    for name in ("dev_patch", "test_patch"):
        path = data_root / f"tacred_patches/tacrev/{name}.json"
        labels |= {record["relation"] for record in json.loads(path.read_text(encoding="utf-8"))}
    assert len(labels) == 41
    assert set(choose_wording(sorted(labels), "tacred", {})) == labels


def test_every_label_of_the_fewrel_files(data_root):
    names = json.loads((data_root / "fewrel/pid2name.json").read_text(encoding="utf-8"))
    labels = list(json.loads((data_root / "fewrel/val_wiki.json").read_text(encoding="utf-8")))
    from_data = {label: names[label][0] for label in labels}
    for choice in ("fewrel", None):
        wording = choose_wording(labels, choice, from_data)
        assert phrases(wording) == from_data
        assert fill(wording["P26"].clause, "Ann", "Bob") == "Ann spouse Bob"


def test_prettified_labels_stay_distinct():
    labels = ["per:born_in", "a_b", "a:b", "x", "_", "org:top/head", "org:Top head"]
    assert phrases(prettified(labels)) == {
        "per:born_in": "per born in",
        "a_b": "a_b",
        "a:b": "a:b",
        "x": "x",
        "_": "_",
        "org:top/head": "org:top/head",
        "org:Top head": "org:Top head",
    }


def test_data_wording_goes_before_prettified_names():
    found = choose_wording(["r_1", "r_2"], None, {"r_1": "first one"})
    assert phrases(found) == {"r_1": "first one", "r_2": "r 2"}


def test_wording_file(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(
        json.dumps({"a": "alpha", "b": {"label": "beta", "clause": "{tail} is {head}'s"}, "c": "x"})
    )
    found = choose_wording(["b", "a"], str(path), {})
    assert phrases(found) == {"b": "beta", "a": "alpha"}
    assert fill(found["a"].clause, "H", "T") == "H alpha T"
    assert fill(found["b"].clause, "{tail}", "T") == "T is {tail}'s"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        (b"\xff\xfe", "UTF-8"),
        ("[1]", "came a list"),
        ('{"a": 3}', "label 'a'.*came 3"),
        ('{"a": " "}', "label 'a'"),
        ('{"a": {"label": "x"}}', "label 'a'"),
        ('{"a": {"label": "x", "clause": "{head} x"}}', "{tail}"),
        ('{"a": {"label": "x", "clause": "{head} {head} {tail}"}}', "each once"),
        ('{"b": "x"}', "label 'a' is not in .*words.json; legal there: b"),
        ('{"a": "x", "c": "x"}', "'a' and 'c' have the same text 'x'"),
    ],
)
def test_bad_wording_files(tmp_path, content, message):
    path = tmp_path / "words.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        choose_wording(["a", "c"], str(path), {})


@pytest.mark.parametrize(
    ("labels", "choice", "from_data", "message"),
    [
        (["Other", "Cause-Effect"], "semeval2010", {}, "'Cause-Effect' is not in .*'semeval2010'"),
        (["per:identity"], "tacred", {}, "'per:identity'.*legal there: no_relation"),
        (["per:alternate_names"], "retacred", {}, "'per:alternate_names'"),
        (["P1"], "fewrel", {"P2": "x"}, "'P1' is not in the data set's wording; legal there: P2"),
        (["P1"], "fewrel", {}, "legal there: none"),
        (["P1", "P2"], None, {"P1": "x", "P2": "x"}, "'P1' and 'P2'"),
        (["P1"], None, {"P1": " "}, "'P1' has an empty text"),
        (["a"], "semeval", {}, "'semeval'; legal: semeval2010, tacred, retacred, fewrel"),
    ],
)
def test_labels_without_usable_words(labels, choice, from_data, message):
    with pytest.raises(UserError, match=message):
        choose_wording(labels, choice, from_data)


def test_finder_prefers_the_closest_form():
    finder = LabelFinder([("C", "c"), ("C++", "cpp"), ("C#", "cs"), ("café au lait", "coffee")])
    assert [finder.find(text) for text in ("C++", " c# ", "C", "c")] == ["cpp", "cs", "c", "c"]
    assert finder.find("cafe  au-lait") == "coffee"
    assert finder.find("C!") is None  # three labels have the letter c
    assert finder.find("") is None
    assert finder.find("tea") is None


def test_type_constraints_of_tacred():
    """The facts that the specification states."""
    assert len(TACRED_PAIRS) == 27
    assert sum(head == "PERSON" for head, _ in TACRED_PAIRS) == 15
    assert {label for allowed in TACRED_PAIRS.values() for label in allowed} == set(TACRED) - {
        "no_relation"
    }
    for (head, _), allowed in TACRED_PAIRS.items():
        assert {label[:3] for label in allowed} == {"per" if head == "PERSON" else "org"}
    location = TACRED_PAIRS["PERSON", "LOCATION"]
    assert len(location) == 10
    assert "per:stateorprovince_of_birth" not in location
    assert {"per:origin", "per:employee_of", "per:stateorprovince_of_death"} <= location
    assert TACRED_PAIRS["PERSON", "CITY"] == {
        "per:city_of_birth",
        "per:cities_of_residence",
        "per:city_of_death",
    }
    assert TACRED_PAIRS["PERSON", "NATIONALITY"] == TACRED_PAIRS["PERSON", "COUNTRY"]
    assert len(TACRED_PAIRS["PERSON", "COUNTRY"]) == 4
    assert len(TACRED_PAIRS["PERSON", "PERSON"]) == 6
    assert TACRED_PAIRS["ORGANIZATION", "DATE"] == {"org:founded", "org:dissolved"}
    assert len(TACRED_PAIRS["ORGANIZATION", "LOCATION"]) == 6
    assert len(TACRED_PAIRS["ORGANIZATION", "COUNTRY"]) == 5


def test_type_constraints_of_retacred():
    assert set(RETACRED_PAIRS) == set(TACRED_PAIRS)
    assert {label for allowed in RETACRED_PAIRS.values() for label in allowed} == set(RETACRED) - {
        "no_relation"
    }
    assert "per:identity" in RETACRED_PAIRS["PERSON", "PERSON"]
    assert RETACRED_PAIRS["PERSON", "MISC"] == {"per:identity"}
    assert RETACRED_PAIRS["ORGANIZATION", "CITY"] == {"org:city_of_branch"}


def test_labels_as_they_are():
    labels = ("no_relation", "per:title", "Cause-Effect(e1,e2)")
    wording = choose_wording(labels, "names", {"per:title": "unused"})
    assert phrases(wording) == {label: label for label in labels}
    assert wording["per:title"].clause == "{head} per:title {tail}"
