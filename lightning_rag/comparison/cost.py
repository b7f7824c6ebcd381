"""Quality against cost: what training took, what a test query takes, and who spends it well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from lightning_rag.comparison.cost_figures import front_figure, phase_figure
from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.errors import DataError

# What the cost ledger counts as training, over all phases but the test. Validations are no part of
# it: how often a run is looked at is no part of its method.
TRAINING = ("estimate", "train", "refresh")
TEST = "test"
SMALLER_IS_BETTER = frozenset({"invalid_rate", "loss"})

KINDS = (*TRAINING, "evaluate")
GIB = 2**30


@dataclass(frozen=True)
class Costs:
    """What a system costs, mean over its runs.

    Args:
        quality: the metric that costs are held against.
        seconds: of training.
        flops: of training, estimated.
        generator_tokens: that training sent through the generator.
        memory: peak, bytes.
        query: seconds, FLOPs and generator tokens of one test query.
    """

    quality: float
    seconds: float
    flops: float
    generator_tokens: float
    memory: float
    query: tuple[float, float, float]

    @property
    def measures(self) -> tuple[float, float, float, float]:
        """Return the four costs in the order of `MEASURES`."""
        return (self.seconds, self.flops, self.generator_tokens, self.memory)


MEASURES = ("seconds", "FLOPs", "generator tokens", "memory")


def section(systems: Sequence[System], metric: str) -> Section:
    """Return quality against cost: a table, its picture, and costs split by phase.

    Args:
        systems: what is compared.
        metric: a test metric that all runs have.
    """
    device = any("memory/device" in book for s in systems for r in s.runs for book in _books(r))
    memory = "memory/device" if device else "memory/process"
    costs = [_costs(system, metric, memory) for system in systems]
    larger = metric not in SMALLER_IS_BETTER
    fair = [not _borrowed(system) and not _oracle(system) for system in systems]
    fronts = [
        _front([cost.measures[m] for cost in costs], [cost.quality for cost in costs], fair, larger)
        for m in range(len(MEASURES))
    ]
    names = [system.name for system in systems]
    totals = _total_table(names, costs, fronts, metric)
    phases = _phase_table(systems, memory)
    return Section(
        name="cost",
        title="Quality against cost",
        paragraphs=tuple(_paragraphs(systems, device)),
        tables=(totals, phases),
        plots=(
            Plot(
                "cost_quality",
                f"{metric} against what training took",
                _front_words(names, fronts, metric),
                front_figure(
                    names,
                    [cost.quality for cost in costs],
                    [cost.measures for cost in costs],
                    fronts,
                    metric,
                ),
                totals.name,
            ),
            Plot(
                "cost_phases",
                "Where the time goes",
                "Stacked bars of the seconds of each system by phase and kind of work, and beside "
                "them the milliseconds of one test query; the numbers stand in the tables.",
                phase_figure(
                    names,
                    [_seconds_by_phase(system) for system in systems],
                    [cost.query[0] * 1e3 for cost in costs],
                ),
                phases.name,
            ),
        ),
        summary=_summary(names, fronts, metric),
    )


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Return which points are on the Pareto front: none is both as cheap and as good, and better.

    Points that are equal in both are all on it or all off it.

    Args:
        costs: smaller is better.
        qualities: larger is better.

    Raises:
        ValueError: not as many costs as qualities.
    """
    if len(costs) != len(qualities):
        raise ValueError(f"expected a quality for each cost, got {len(qualities)} for {len(costs)}")
    on = [False] * len(costs)
    best = float("-inf")  # of all cheaper points
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -qualities[i]))
    leader = None  # the last point that went ahead: its equals are on the front too
    for i in order:
        point = (costs[i], qualities[i])
        on[i] = qualities[i] > best or point == leader
        if qualities[i] > best:
            best, leader = qualities[i], point
    return on


def _front(
    costs: Sequence[float], qualities: Sequence[float], fair: Sequence[bool], larger: bool
) -> list[bool]:
    """Return which systems are on the front of those whose cost and quality are their own."""
    places = [number for number, is_fair in enumerate(fair) if is_fair]
    on = pareto_front(
        [costs[i] for i in places], [qualities[i] if larger else -qualities[i] for i in places]
    )
    members = {i for i, is_on in zip(places, on, strict=True) if is_on}
    return [number in members for number in range(len(costs))]


def _borrowed(system: System) -> bool:
    """Whether another run's training made its weights, so that its books do not hold their cost."""
    return any(
        run.config.get("initial_weights")
        or ("fit" not in run.summary and run.config.get("ckpt_path"))
        for run in system.runs
    )


def _oracle(system: System) -> bool:
    """Whether its first stage reads the gold answers: a bound, not a method."""
    return any(
        isinstance(data := run.config.get("data"), Mapping)
        and isinstance(stage := data.get("first_stage"), Mapping)
        and str(stage.get("class_path")).endswith(".Oracle")
        for run in system.runs
    )


def _books(run: Run) -> list[Mapping[str, float]]:
    return list(_phases(run).values())


def _phases(run: Run) -> Mapping[str, Mapping[str, float]]:
    """Return what was booked under each phase, and under "test".

    Raises:
        DataError: there are no books.
    """
    books = run.summary.get("cost")
    if not isinstance(books, Mapping) or not books:
        raise DataError(f"{run.folder / 'summary.json'} is damaged: cost is missing; test it again")
    return cast(Mapping[str, Mapping[str, float]], books)


def _training(run: Run, prefix: str) -> float:
    books = [book for phase, book in _phases(run).items() if phase != TEST]
    return sum(book.get(f"{prefix}/{kind}", 0.0) for book in books for kind in TRAINING)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _costs(system: System, metric: str, memory: str) -> Costs:
    runs = system.runs

    def training(prefix: str) -> float:
        return _mean([_training(run, prefix) for run in runs])

    def query(*names: str) -> float:
        tests = [(_phases(run).get(TEST, {}), len(run.rows)) for run in runs]
        return _mean([sum(book.get(name, 0.0) for name in names) / n for book, n in tests])

    return Costs(
        quality=_mean([run.test[metric] for run in runs]),
        seconds=training("seconds"),
        flops=training("flops"),
        generator_tokens=training("tokens/generator"),
        memory=_mean([max(book.get(memory, 0.0) for book in _books(run)) for run in runs]),
        query=(
            query("seconds/evaluate", "seconds/refresh"),
            query("flops/evaluate", "flops/refresh"),
            query("tokens/generator/evaluate"),
        ),
    )


def _paragraphs(systems: Sequence[System], device: bool) -> list[str]:
    said = [
        "Training is steps, estimates and index refreshes; validations are not counted. A system "
        "is on the front of a cost if no other is as good and costs less, or is better and costs "
        "no more, by the means alone: whether a step in quality is chance, the pairs say. "
        "FLOPs are estimated from tokens and parameters. Memory is the peak "
        + ("of the device." if device else "of the process, all libraries included.")
    ]
    machines = {
        str(circumstances.get("machine"))
        for system in systems
        for run in system.runs
        for stage in ("fit", "test")
        if isinstance(circumstances := run.summary.get(stage), Mapping)
    }
    if len(machines) > 1:
        said.append(
            "The runs were made on machines that differ (see the manifest): their seconds and "
            "memory do not compare, FLOPs and tokens do."
        )
    borrowed = [system.name for system in systems if _borrowed(system)]
    if borrowed:
        said.append(
            "These have weights of other runs, whose cost is not in their books, so they are on no "
            f"front: {', '.join(borrowed)}."
        )
    oracles = [system.name for system in systems if _oracle(system)]
    if oracles:
        said.append(
            "The first stage of these reads the gold answers. They bound what retrieval can bring, "
            f"and are on no front: {', '.join(oracles)}."
        )
    return said


def _total_table(
    names: Sequence[str], costs: Sequence[Costs], fronts: Sequence[Sequence[bool]], metric: str
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, (name, cost) in enumerate(zip(names, costs, strict=True)):
        on = [measure for measure, front in zip(MEASURES, fronts, strict=True) if front[number]]
        seconds, flops, tokens = cost.query
        rows.append(
            (
                name,
                cost.quality,
                cost.seconds,
                cost.flops / 1e12,
                round(cost.generator_tokens),
                cost.memory / GIB,
                seconds * 1e3,
                flops / 1e9,
                tokens,
                ", ".join(on) if len(on) < len(MEASURES) else "all",
            )
        )
    return Table(
        name="cost",
        title="What training took, and what a test query takes",
        columns=(
            "system",
            metric,
            "training: seconds",
            "TFLOPs",
            "generator tokens",
            "peak memory, GiB",
            "test query: ms",
            "GFLOPs",
            "generator tokens a query",
            "on the front of",
        ),
        rows=tuple(rows),
        note="Means over the seeds. A test query's share of encoding the store is in its figures.",
        digits=2 if all(abs(cost.quality) > 1 for cost in costs) else 3,
        bold=frozenset(
            (row, 2 + measure)
            for measure, front in enumerate(fronts)
            for row, on in enumerate(front)
            if on
        ),
    )


def _phase_table(systems: Sequence[System], memory: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for system in systems:
        for phase in _phase_names(system):
            books = [_phases(run).get(phase, {}) for run in system.runs]
            booked = [kind for kind in KINDS if any(f"seconds/{kind}" in book for book in books)]
            tokens = {name for book in books for name in book if name.startswith("tokens/")}
            own = {name for name in tokens if name.startswith("tokens/generator/")}
            rows.append(
                (
                    system.name,
                    phase,
                    *(
                        _of(books, [f"seconds/{kind}"]) if kind in booked else None
                        for kind in KINDS
                    ),
                    round(_of(books, own)),
                    round(_of(books, tokens - own)),
                    _of(books, [f"flops/{kind}" for kind in KINDS]) / 1e12,
                    max(book.get(memory, 0.0) for book in books) / GIB,
                )
            )
    return Table(
        name="cost_phases",
        title="Cost by phase",
        columns=(
            "system",
            "phase",
            "estimate, s",
            "steps, s",
            "index refresh, s",
            "evaluation, s",
            "generator tokens",
            "other tokens",
            "TFLOPs",
            "peak memory, GiB",
        ),
        rows=tuple(rows),
        note="Means over the seeds; of memory, the largest. With all that was booked: evaluation "
        "is validation, and in the phase “test” the test.",
        digits=2,
    )


def _phase_names(system: System) -> list[str]:
    """Return the phases of a system in the order in which they ran, "test" last."""
    names = dict.fromkeys(phase for run in system.runs for phase in _phases(run))
    return [name for name in names if name != TEST] + [name for name in names if name == TEST]


def _seconds_by_phase(system: System) -> dict[str, dict[str, float]]:
    """Return the seconds of each phase but the test by kind of work, mean over the runs."""
    return {
        phase: {
            kind: _of([_phases(run).get(phase, {}) for run in system.runs], [f"seconds/{kind}"])
            for kind in KINDS
        }
        for phase in _phase_names(system)
        if phase != TEST
    }


def _of(books: Sequence[Mapping[str, float]], names: Sequence[str] | set[str]) -> float:
    return _mean([sum(book.get(name, 0.0) for name in names) for book in books])


def _front_words(names: Sequence[str], fronts: Sequence[Sequence[bool]], metric: str) -> str:
    said = []
    for measure, front in zip(MEASURES, fronts, strict=True):
        on = [name for name, is_on in zip(names, front, strict=True) if is_on]
        said.append(f"{measure}: {', '.join(on)}")
    return f"Scatter plots of {metric} against four costs. On the front of {'; of '.join(said)}."


def _summary(
    names: Sequence[str], fronts: Sequence[Sequence[bool]], metric: str
) -> tuple[str, ...]:
    """Say which systems are worth their training, where there is something to choose."""
    on = [name for name, is_on in zip(names, fronts[MEASURES.index("FLOPs")], strict=True) if is_on]
    if len(names) < 2 or not on:
        return ()
    verb = "is" if len(on) == 1 else "are"
    return (
        f"On the front of {metric} against training FLOPs {verb} {', '.join(on)}: no other system "
        "that may be on it has as good a mean for less.",
    )
