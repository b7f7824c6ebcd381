"""What training does to each part: retriever trained or frozen, generator trained or frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lightning_rag.comparison.measured import ENDS, Estimate, Measured, intervals_note
from lightning_rag.comparison.quality import percent, signed
from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.style import INK, MUTED, PALETTE, SIZE, SMALL, canvas, head

TT, FT, TF, FF = "trained, trained", "frozen, trained", "trained, frozen", "frozen, frozen"
# cell (retriever, generator) -> what its variant has behind that of the method itself, which has
# nothing behind it, whichever cell it is
SUFFIXES: Mapping[str, str] = {
    TT: "-trained-both",
    FT: "-frozen-retriever",
    TF: "-frozen-generator",
    FF: "-frozen-both",
}
# (what is asked, weights of the cells); the last one is the interaction
CONTRASTS: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("training the retriever, generator trained", {TT: 1, FT: -1}),
    ("training the retriever, generator frozen", {TF: 1, FF: -1}),
    ("training the generator, retriever trained", {TT: 1, TF: -1}),
    ("training the generator, retriever frozen", {FT: 1, FF: -1}),
    ("interaction", {TT: 1, FT: -1, TF: -1, FF: 1}),
)
WIDE = 3  # panels beside each other


@dataclass(frozen=True)
class Square:
    """The 2 x 2 of a method.

    Args:
        name: of the method with its variant.
        cells: the systems that there are, by cell.
    """

    name: str
    cells: Mapping[str, System]

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the cells that there are no runs of."""
        return tuple(cell for cell in SUFFIXES if cell not in self.cells)


def squares(systems: Sequence[System]) -> list[Square]:
    """Return the 2 x 2 of every method that has a frozen cell, found by the names of variants.

    The cells of variant v are v, v-trained-both, v-frozen-retriever, v-frozen-generator and
    v-frozen-both, of one experiment; v itself is the cell with both trained, or, if no phase of it
    trained the generator, that with the generator frozen, or, if nothing was trained, with both
    frozen. They may be of other methods than v, as
    the controls of some methods are; where two methods have equal variants, each has the cells of
    its own method.
    """
    groups: dict[tuple[str, str], list[tuple[str, System]]] = {}
    for system in systems:
        run = system.runs[0]
        cell, base = _cell(run)
        groups.setdefault((run.experiment, base), []).append((cell, system))
    found = []
    for (_, base), members in groups.items():
        if all(system.runs[0].variant == base for _, system in members):
            continue
        for part in _parted(members):
            cells = dict(part)
            own = [system.name for system in cells.values() if system.runs[0].variant == base]
            if len(own) < len(cells):
                name = own[0] if own else base
                found.append(
                    Square(name, {cell: cells[cell] for cell in SUFFIXES if cell in cells})
                )
    return found


def section(systems: Sequence[System], measured: Measured) -> Section | None:
    """Return the 2 x 2 of every method that has one, None where there is none.

    Args:
        systems: what is compared.
        measured: the metric that they are compared by.
    """
    found = squares(systems)
    if not found:
        return None
    said = [
        "Each part is trained as in the method, or frozen. The interaction is what training both "
        "brings beyond the sum of what each brings alone: (trained, trained less frozen, trained) "
        "less (trained, frozen less frozen, frozen), retriever first. Above 0 the two help one "
        "another, below 0 each does what the other could do."
    ]
    said += [
        f"{square.name}: there are no runs of retriever and generator {'; '.join(square.missing)}, "
        "so there is no interaction."
        for square in found
        if square.missing
    ]
    if len(measured.seeds) == 1:
        said.append("One seed: the intervals hold for these trained models alone.")
    whole = [square for square in found if not square.missing]
    plot = Plot(
        "factorial",
        f"{measured.metric} with trained and frozen parts",
        "For each method two lines, one for the frozen and one for the trained retriever, from the "
        "frozen to the trained generator; lines that are parallel have no interaction.",
        _figure(found, measured),
        "factorial",
    )
    return Section(
        "factorial",
        "Trained or frozen: retriever and generator",
        tuple(said),
        (_cell_table(found, measured), *_effect_tables(found, measured)),
        (plot,),
        summary=tuple(_summary(square, measured) for square in whole),
    )


def _cell(run: Run) -> tuple[str, str]:
    """Return the cell that a run is of, and the variant of the method itself."""
    for cell, suffix in SUFFIXES.items():
        if run.variant.endswith(suffix):
            return cell, run.variant.removesuffix(suffix)
    trained = run.summary.get("trained")
    if not isinstance(trained, list) or "generator" in trained:
        return TT, run.variant
    return TF if trained else FF, run.variant


def _parted(members: Sequence[tuple[str, System]]) -> Iterator[list[tuple[str, System]]]:
    """Part the systems of equal base so that no cell has two."""
    if len({cell for cell, _ in members}) == len(members):
        yield list(members)
        return
    methods = dict.fromkeys(system.runs[0].method for _, system in members)
    for method in methods:
        yield [(cell, system) for cell, system in members if system.runs[0].method == method]


def _estimates(square: Square, measured: Measured) -> dict[str, Estimate]:
    return {cell: measured.contrast({s.name: 1.0}) for cell, s in square.cells.items()}


def _contrast(square: Square, measured: Measured, weights: Mapping[str, float]) -> Estimate | None:
    """Return a contrast of cells, None where one of them is missing."""
    if not weights.keys() <= square.cells.keys():
        return None
    return measured.contrast({square.cells[cell].name: w for cell, w in weights.items()})


def _cell_table(found: Iterable[Square], measured: Measured) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for square in found:
        estimates = _estimates(square, measured)
        for cell in SUFFIXES:
            retriever, generator = cell.split(", ")
            estimate = estimates.get(cell)
            if estimate is None:
                rows.append((square.name, retriever, generator, None, None, *[None] * 5))
                continue
            system = square.cells[cell].name
            figures = (estimate.value, *estimate.ends, estimate.deviation)
            rows.append((square.name, retriever, generator, system, *figures))
    columns = (
        "method",
        "retriever",
        "generator",
        "system",
        measured.metric,
        *ENDS,
        "SD over seeds",
    )
    return Table("factorial", f"Test {measured.metric} of the cells", columns, tuple(rows))


def _effect_tables(found: Iterable[Square], measured: Measured) -> Iterator[Table]:
    rows: list[tuple[Cell, ...]] = []
    for square in found:
        for name, weights in CONTRASTS:
            estimate = _contrast(square, measured, weights)
            if estimate is not None:
                p = estimate.training.p if estimate.training else None
                rows.append((square.name, name, estimate.value, *estimate.ends, p))
    if rows:
        yield Table(
            "factorial_effects",
            f"What training changes in {measured.metric}",
            ("method", "what", "difference", *ENDS, "p over seeds"),
            tuple(rows),
            intervals_note(measured.confidence, len(measured.seeds))
            + " All are paired by query and seed; p is not corrected for the number of rows.",
        )


def _summary(square: Square, measured: Measured) -> str:
    estimate = _contrast(square, measured, CONTRASTS[-1][1])
    if estimate is None:
        raise ValueError(f"{square.name}: cells are missing: {square.missing}")
    interval = estimate.training or estimate.queries
    said = f"Interaction of training retriever and generator, {square.name}: "
    said += signed(estimate.value)
    if interval is None:
        return said + "."
    over = "queries and seeds" if estimate.training else "queries"
    ends = f"{signed(interval.low)} to {signed(interval.high)}"
    verdict = ": none that can be told from 0" if interval.low <= 0 <= interval.high else ""
    return f"{said} ({percent(measured.confidence)}, over {over}: {ends}){verdict}."


def _figure(found: Sequence[Square], measured: Measured) -> Figure:
    """Draw a panel a method, a line for each state of the retriever."""
    wide = min(len(found), WIDE)
    rows = -(-len(found) // wide)
    figure, panels = canvas(3.4 * wide + 0.8, 3.0 * rows, wide, rows, share_y=True)
    for ax in panels[len(found) :]:
        ax.set_visible(False)
    for ax, square in zip(panels, found, strict=False):
        estimates = _estimates(square, measured)
        lines = (
            ("retriever trained", (TF, TT), "o", "-"),
            ("retriever frozen", (FF, FT), "s", "--"),
        )
        for shift, (name, cells, marker, dash) in zip((-0.02, 0.02), lines, strict=True):
            had = [(x, estimates[cell]) for x, cell in enumerate(cells) if cell in estimates]
            colour = PALETTE[0] if marker == "o" else PALETTE[1]
            xs = [x + shift for x, _ in had]
            ax.plot(xs, [e.value for _, e in had], dash, marker=marker, color=colour, label=name)
            for x, (_, estimate) in zip(xs, had, strict=True):
                interval = estimate.training or estimate.queries
                if interval is not None:
                    ax.plot([x, x], [interval.low, interval.high], color=colour, linewidth=1)
        ax.set_xticks((0, 1), ("generator frozen", "generator trained"))
        ax.set_xlim(-0.3, 1.3)
        ax.tick_params(axis="x", labelsize=SIZE, labelcolor=INK)
        head(ax, square.name)
    panels[0].set_ylabel(measured.metric, fontsize=SIZE)
    panels[0].legend(fontsize=SMALL, frameon=False, labelcolor=MUTED)
    return figure
