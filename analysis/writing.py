"""Write everything: the one place that knows which files a report has, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import analysis
from analysis import reference
from analysis import scope as scopes
from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.results import Results


def write(source: Path, out: Path | None, overlay: str | None) -> analysis.Written:
    """See `analysis.write`."""
    if overlay not in (None, "published"):
        raise AnalysisError(f"overlay {overlay!r}: no such curves; allowed: published")
    from analysis import decomposition, figure2, figure2_paired, figure3, style, summary, table1, tables, verdicts
    from analysis.results import read

    results = read(source)
    out = out or (source / "report" if source.is_dir() else Path("report"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"--out {out}: cannot make this folder ({error.strerror}); give a folder") from None
    published = read(reference.PATH) if overlay else None
    scope = scopes.main(results)
    theirs = scopes.main(published) if published else None
    drawings: dict[str, tuple[str, Callable[[], Figure]]] = {
        "figure2": (figure2.reason_against(scope), lambda: figure2.draw(scope, results.depth, theirs)),
        "figure2_paired": (
            figure2_paired.reason_against(scope),
            lambda: figure2_paired.draw(scope, results.depth, theirs),
        ),
        "figure3": (figure3.reason_against(results), lambda: figure3.draw(results, published)),
    }
    paths: list[Path] = []
    skipped: list[str] = []
    for name, (reason, draw) in drawings.items():
        for kind in ("png", "svg"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)  # an older study's figure must not stay behind
        if reason:
            skipped.append(reason)
        else:
            paths += style.save(draw(), out, name)
    judged = verdicts.judge(results)
    page = summary.summarise(results, judged)
    paths += tables.save(table1.tables(scope, results.depth), out, "table1")
    paths += tables.save([decomposition.table(populations(results))], out, "decomposition")
    paths += tables.save([verdicts.table(judged)], out, "claims", ("md", "csv"))
    (out / "summary.md").write_text(page.markdown(), encoding="utf-8")
    paths.append(out / "summary.md")
    return analysis.Written(out, tuple(paths), page.text(), tuple(skipped))


def populations(results: Results) -> list[scopes.Scope]:
    """The main splits, the other split, and the random splits on its terms where they are not the main ones."""
    found = [scopes.main(results)]
    other = scopes.other(results)
    if other:
        found.append(other)
        against = scopes.peers(results, other)
        if against and set(against.frame["cell"]) != set(found[0].frame["cell"]):
            found.append(against)
    return found
