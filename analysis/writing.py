"""Write everything: the one place that knows which files a report has, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import analysis
from analysis import reference
from analysis import scope as scopes
from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.report import Picture
    from analysis.results import Results
    from analysis.summary import Summary
    from analysis.tables import Table
    from analysis.verdicts import Judged


def write(source: Path, out: Path | None, overlay: str | None) -> analysis.Written:
    """See `analysis.write`."""
    if overlay not in (None, "published"):
        raise AnalysisError(f"overlay {overlay!r}: no such curves; allowed: published")
    from analysis import comparison, decomposition, preserved, report, summary, table1, tables, verdicts
    from analysis.results import read

    results = read(source)
    published = read(reference.PATH)
    out = out or (source / "report" if source.is_dir() else Path("report"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"--out {out}: cannot make this folder ({error.strerror}); give a folder") from None
    scope = scopes.main(results)
    judged = verdicts.judge(results)
    page = summary.summarise(results, judged)
    for form in tables.FORMS:
        (out / f"preserved.{form}").unlink(missing_ok=True)
    kept = None if preserved.reason_against(results) is None else preserved.table(results)
    paths, skipped, pictures = _figures(results, published, published if overlay else None, judged, page, kept, out)
    ones = table1.tables(scope, results.depth)
    parts = decomposition.table(populations(results))
    paths += tables.save(ones, out, "table1")
    paths += tables.save([parts], out, "decomposition")
    paths += tables.save([kept], out, "preserved") if kept else []
    claims = verdicts.table(judged, page.interim)
    paths += tables.save([claims], out, "claims", ("md", "csv"))
    (out / "summary.md").write_text(page.markdown(), encoding="utf-8")
    paths.append(out / "summary.md")
    learning, reason = _learning(results)
    if reason:
        skipped.append(reason)
    beside = pictures.pop("comparison", None)
    shown = report.Page(
        results=results,
        summary=page,
        figures=list(pictures.values()),
        decomposition=parts,
        preserved=kept,
        table1=ones,
        verdicts=judged,
        verdict_notes=[note for note in claims.notes if note != page.interim],
        comparison=beside,
        comparison_tables=comparison.tables(results, published) if beside else [],
        learning=learning,
        skipped=[s for s in skipped if not s.startswith("comparison")],
    )
    paths.append(report.write(shown, out))
    return analysis.Written(out, tuple(paths), page.text(), tuple(skipped))


def _figures(
    results: Results,
    published: Results,
    overlay: Results | None,
    judged: Sequence[Judged],
    page: Summary,
    kept: Table | None,
    out: Path,
) -> tuple[list[Path], list[str], dict[str, Picture]]:
    """Draw what can be drawn; the paths, the reasons for what cannot, and the pictures of the report."""
    from analysis import comparison, figure2, figure2_paired, figure3, preserved, report, style, supplement

    scope, depth = scopes.main(results), results.depth
    theirs = scopes.main(overlay) if overlay else None
    numbers = "; ".join(f"{row[0]}: {', '.join(filter(None, row[1:]))}" for row in page.table.rows)
    drawings: dict[str, tuple[str | None, Callable[[], Figure], str, str, str]] = {
        "figure2": (
            figure2.reason_against(scope),
            lambda: figure2.draw(scope, depth, judged, theirs, [page.interim]),
            "Figure 2",
            f"Top-1 accuracy against the number of copied layers n. Mean per cent (units) from n = 0 up: {numbers}",
            "Top: every network. Bottom: means, with those of the paper's explanations whose claim is supported here.",
        ),
        "figure2_paired": (
            figure2_paired.reason_against(scope),
            lambda: figure2_paired.draw(scope, depth, theirs),
            "Figure 2, paired",
            f"Differences of accuracy on the same task and seed, in points, against n. {' '.join(page.answer)}",
            "The same networks minus the reference of their own task and seed.",
        ),
        "figure3": (
            figure3.reason_against(results),
            lambda: figure3.draw(results, overlay),
            "Figure 3",
            "Accuracy relative to the base of the same task, in points, against n: " + _spoken(results),
            "Dissimilar halves and random filters beside random splits.",
        ),
        "supplement": (
            supplement.reason_against(results),
            lambda: supplement.draw(results, overlay),
            "Supplement",
            "Top-1 accuracy of bases in per cent by images per class, linear on top and log-log below: "
            + _counted(results),
            "Accuracy against images per class.",
        ),
        "preserved": (
            preserved.reason_against(results),
            lambda: preserved.draw(results, overlay),
            "Preserved layers",
            "Top-1 accuracy in per cent (units) against n, plain and with copied layers above n left to learn. "
            + (preserved.spoken(kept) if kept else ""),
            "After the authors' unpublished runs: layers above the frozen ones copied too, and trained.",
        ),
        "comparison": (
            comparison.reason_against(results),
            lambda: comparison.draw(results, published),
            "Side by side",
            "Three columns: this study, the authors' networks, the first minus the second, each relative to its own "
            "base in points; the numbers are in the tables below.",
            "Figures 2 and 3 in the paper's layout, relative to own base: ours, the authors', ours minus theirs.",
        ),
    }
    paths: list[Path] = []
    skipped: list[str] = []
    pictures: dict[str, Picture] = {}
    for name, (reason, draw, title, alt, caption) in drawings.items():
        for kind in ("png", "svg"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)  # an older study's figure must not stay behind
        if reason is None:  # nothing that this study set out to show
            continue
        if reason:
            skipped.append(reason)
            continue
        paths += style.save(draw(), out, name)
        pictures[name] = report.picture(title, alt, out / f"{name}.svg", caption)
    return paths, skipped, pictures


def _spoken(results: Results) -> str:
    """Figure 3 in words, for those who cannot see it."""
    from analysis import figure3
    from analysis.tables import points

    return "; ".join(
        f"{label}: " + ", ".join(f"n = {n} {points(v, 1)}" for n, v in means.items())
        for label, means in figure3.table(results).items()
    )


def _counted(results: Results) -> str:
    """The supplement in words."""
    from analysis import supplement

    level = supplement.chance(results)
    said = [f"{count:,} {100 * mean:.2f}" for count, mean in supplement.means(results).items()]
    return ", ".join(said) + (f"; chance {100 * level:.2f}" if level else "")


def _learning(results: Results) -> tuple[Picture | None, str]:
    """The learning curves as a picture of the report only, or why there are none."""
    from analysis import learning, report, style

    reason = learning.reason_against(results)
    drawn = None if reason else learning.draw(results)
    if drawn is None:
        return None, reason or "learning curves: history.parquet has no row of these cells"
    with TemporaryDirectory() as folder:
        svg = style.save(drawn, Path(folder), "learning", ("svg",))[0]
        alt = "Test accuracy against epochs, one panel a treatment, one line a network of a sample, marked with its n"
        caption = "A sample of networks, spread evenly over n, splits and seeds; dotted: diverged."
        return report.picture("Learning curves", alt, svg, caption), ""


def populations(results: Results) -> list[scopes.Scope]:
    """The main splits, the other split, and the random splits on its terms where they are not the main ones."""
    found = [scopes.main(results)]
    other = scopes.other(results)
    if other:
        found.append(other)
        against = scopes.peers(results, other)
        if against and against.has("selffer") and against is not found[0]:
            found.append(against)
    return found
