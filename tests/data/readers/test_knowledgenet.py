"""The released KnowledgeNet export, and damaged ones."""

from __future__ import annotations

import html
import re
import zipfile
from collections import Counter, defaultdict

import pytest

from lightning_rag.data.readers.knowledgenet import PROPERTIES, KnowledgeNet
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import InformationExtraction

FILE = "knowledgenet/human_readable-v10-notest.zip"
# Facts and passages without one, by property, as the data set's note counts them.
COUNTS = {
    "CEO": (514, 134),
    "CHILD_OF": (728, 120),
    "DATE_FOUNDED": (412, 173),
    "DATE_OF_BIRTH": (619, 174),
    "DATE_OF_DEATH": (493, 122),
    "EDUCATED_AT": (756, 99),
    "EMPLOYEE_OR_MEMBER_OF": (1408, 78),
    "FOUNDED_BY": (595, 138),
    "HEADQUARTERS": (733, 195),
    "NATIONALITY": (513, 280),
    "PLACE_OF_BIRTH": (909, 245),
    "PLACE_OF_RESIDENCE": (1187, 314),
    "POLITICAL_AFFILIATION": (504, 160),
    "SPOUSE": (1092, 137),
    "SUBSIDIARY_OF": (432, 135),
}


@pytest.fixture(scope="module")
def splits(data_root):
    return KnowledgeNet().read(data_root, seed=0)


@pytest.fixture(scope="module")
def rows(data_root):
    """The rows by the marks of their text and not by their offsets."""
    with zipfile.ZipFile(data_root / FILE) as archive:
        page = archive.read("human_readable-v10-notest.html").decode()
    found = []
    for row in re.findall(r"<tr>(<td.*?)</tr>", page[page.index("</tfoot>") :]):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        text = cells[9].removeprefix("<p> ")
        marked = {}
        for name in ("subject", "object"):
            inside = re.search(rf'<span id="{name}">(.*?)</span>', text)
            marked[name] = inside and html.unescape(re.sub("<[^>]*>", "", inside[1]))
        plain = html.unescape(re.sub("<[^>]*>", "", text.removesuffix("</p>")))
        found.append((int(cells[0]), plain, cells[8], marked["subject"], marked["object"]))
    return found


def test_counts_of_the_release(rows):
    assert len(rows) == 13399
    facts = Counter(label for _, _, label, subject, _ in rows if subject is not None)
    absent = Counter(label for _, _, label, subject, _ in rows if subject is None)
    assert {label: (facts[label], absent[label]) for label in PROPERTIES} == COUNTS
    assert (facts.total(), absent.total()) == (10895, 2504)


def test_every_row_is_in_its_record(splits, rows):
    parts = {"train": (1, 2), "validation": (3,), "test": (4,)}
    later = {normalise(i.text) for i in splits.validation + splits.test}
    sizes = []
    for split, folds in parts.items():
        expected, asked = defaultdict(set), defaultdict(set)
        for fold, text, label, subject, thing in rows:
            if fold in folds and (split != "train" or normalise(text) not in later):
                asked[text].add(PROPERTIES[label])
                if subject is not None:
                    expected[text].add((PROPERTIES[label], subject, thing))
        found = getattr(splits, split)
        sizes.append(len(found))
        assert {i.text for i in found} == set(asked)
        assert len({i.text for i in found}) == len(found)
        for i in found:
            facts = [(f.type, *(m.text for m in f.mentions)) for f in i.extraction.facts]
            assert len(set(facts)) == len(facts)
            assert set(facts) == expected[i.text]
            assert set(i.extraction.schema) == asked[i.text]
    assert sizes == [2842, 1440, 1432]  # of 5,728 passages, 10 repeated in their split


def test_records_are_sound(splits):
    order = list(PROPERTIES.values())
    for part in (splits.train, splits.validation, splits.test):
        InformationExtraction().check_answers(part)
        for i in part:
            places = [order.index(label) for label in i.extraction.schema]
            assert places == sorted(places)
            for fact in i.extraction.facts:
                for mention in fact.mentions:
                    assert i.text[mention.start : mention.end] == mention.text
    assert len({i.id for i in splits.train + splits.validation + splits.test}) == 2842 + 1440 + 1432
    assert splits.train[0].answers[0].startswith("subsidiary of: VinSolutions, Cox Automotive; ")
    assert splits.train[0].id == "RE_knowledgenet/train/0"


def test_all_properties(data_root, splits):
    whole = KnowledgeNet(schema="all").read(data_root, seed=1)
    assert {i.extraction.schema for i in whole.train} == {tuple(PROPERTIES.values())}
    assert [i.answers for i in whole.test] == [i.answers for i in splits.test]


def row(fold, document, text, label="CEO", places=("-",) * 4, start=0):
    cells = [fold, document, start, start + 20, *places, label, f"<p> {text}</p>"]
    return "<tr>" + "".join(f'<td style="a">{cell}</td>' for cell in cells) + "</tr>\n"


BOB = '<span id="object"><a href="x">Bob</a></span> runs <span id="subject">M&amp;Co</span>.'
GOOD = [
    row(1, 1, BOB, places=(19, 23, 10, 13), start=10),
    row(1, 1, "Bob runs M&amp;Co.", "SPOUSE", start=10),
    row(2, 2, "Nothing."),
    row(3, 3, "Bob RUNS M&amp;Co."),
    row(4, 4, "Ann sings."),
    row(4, 5, "Ann sings.", "SPOUSE"),
]


@pytest.fixture
def read(tmp_path):
    def of(rows, names=("page.html", "__MACOSX/._page.html"), **arguments):
        (tmp_path / "knowledgenet").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / FILE, "w") as archive:
            for name in names:
                archive.writestr(name, "<table>\n<tr> <th>x</th>\n</tr>\n" + "".join(rows))
        return KnowledgeNet(**arguments).read(tmp_path, seed=0)

    return of


def test_small_file(read):
    splits = read(GOOD, train_folds=(1,), validation_folds=(2,))
    (record,) = splits.train
    assert record.text == "Bob runs M&Co."
    assert record.answers == ("CEO: M&Co, Bob",)
    assert record.extraction.schema == ("CEO", "spouse")
    assert [i.extraction.schema for i in splits.test] == [("CEO", "spouse")]  # quoted twice
    assert [i.answers for i in splits.test] == [("None",)]
    repeated = read(GOOD)
    assert [i.text for i in repeated.train] == ["Nothing."]
    assert [i.id for i in repeated.train] == ["RE_knowledgenet/train/1"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("x", 1, "a"), r"\.zip:10: 'x' is no number; legal: digits"),
        (row(1, 1, "a", "AGE"), r"\.zip:10: unknown label 'AGE'; legal: CEO, CHILD_OF"),
        (row(1, 9, "abc", places=(0, 2, "-", "-")), r"\.zip:10: '-' is no number; legal"),
        (row(1, 9, "abc", places=(0, 2, 2, 4)), r"\.zip:10: object is \[2, 4\) in a sentence of 3"),
        (row(1, 9, "a c", places=(1, 2, 0, 1)), r"\.zip:10: subject \[1, 2\) is only white space"),
        (row(1, 1, "Bob.", start=10), r"\.zip:10: 'Bob.'; legal: the text of the passage, 'Bob r"),
        ("<tr><td>1</td></tr>\n", r"\.zip:10: 1 cells; legal: a row of 10"),
    ],
)
def test_damaged_rows(read, bad, message):
    with pytest.raises(DataError, match=message):
        read([*GOOD, bad])


def test_damaged_files(read, tmp_path):
    with pytest.raises(DataError, match=r"\.zip: no such file; .*LIGHTNING_RAG_DATA"):
        KnowledgeNet().read(tmp_path, seed=0)
    with pytest.raises(DataError, match=r"\.zip: no rows; legal"):
        read([])
    with pytest.raises(DataError, match=r"\.zip: 2 HTML files; legal: one"):
        read(GOOD, names=("a.html", "b.html"))
    with pytest.raises(DataError, match=r"\.zip: no passage of fold 5; legal: 1, 2, 3, 4"):
        read(GOOD, test_folds=(4, 5))
    (tmp_path / FILE).write_bytes(b"no zip file")
    with pytest.raises(DataError, match=r"\.zip: cannot be read as a zip file"):
        KnowledgeNet().read(tmp_path, seed=0)


def test_arguments():
    with pytest.raises(UserError, match=r"are \[1, 2\], \[2\] and \[4\]; legal: at least one fold"):
        KnowledgeNet(validation_folds=(2,))
    with pytest.raises(UserError, match=r"and \[\]; legal: at least one fold"):
        KnowledgeNet(test_folds=())
    with pytest.raises(UserError, match="schema is 'some'; legal: annotated, all"):
        KnowledgeNet(schema="some")
