"""What a report is made of refuses what its writers could not write."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from lightning_rag.comparison.section import Plot, Report, Section, Table


def test_a_row_has_a_cell_for_every_column():
    with pytest.raises(ValueError, match="table t: row 1 has 1 cells, but there are 2 columns"):
        Table("t", "T", ("a", "b"), ((1, 2), (3,)))


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a/b", "-a", "a.b", "a\n"])
def test_names_are_file_stems(name):
    with pytest.raises(ValueError, match="names a file"):
        Table(name, "T", (), ())
    with pytest.raises(ValueError, match="names a file"):
        Section(name, "S")


def test_a_plot_says_what_is_to_be_seen():
    with pytest.raises(ValueError, match="plot p: alt must say"):
        Plot("p", "P", " ", Figure())


def test_names_are_unique_in_a_report():
    one = Section("a", "A", tables=(Table("t", "T", (), ()),))
    two = Section("b", "B", tables=(Table("t", "T", (), ()),))
    with pytest.raises(ValueError, match=r"tables: each name may occur once, got twice: \['t'\]"):
        Report("R", (), (), (one, two))
    with pytest.raises(ValueError, match="sections: each name"):
        Report("R", (), (), (Section("a", "A"), Section("a", "B")))
