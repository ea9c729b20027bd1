"""Figures as pictures: nothing stands over data, and what a study has beside the paper's main figures is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up_studies as made_up
import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import figure2, figure3, placing, preserved, reference, style, supplement, verdicts
from analysis import scope as scopes
from analysis.results import Results, check, read


def drops_first(treatment: str, n: int, split: str) -> float:
    """Copying one layer costs most: the points lie where the paper's legend is."""
    return 0.0 if n == 0 else -0.1 + 0.03 * n


def everywhere(treatment: str, n: int, split: str) -> float:
    """Points in every corner."""
    return 0.0


STUDIES: dict[str, dict[str, Any]] = {
    "few": {"splits": (0,), "layers": (1, 2, 3), "depth": 4},
    "first": {"splits": (0,), "layers": (1, 2, 3), "depth": 4, "effect": drops_first},
    "everywhere": {"splits": (0, 1, 2, 3, 4), "layers": (1, 2, 3), "depth": 4, "effect": everywhere, "noise": 0.2},
    "paper-like": {"splits": (0, 1, 2), "seeds": (0, 1)},
}
EVERY = ("base", "scratch", "base-long", *made_up.COPYING)


@pytest.fixture(scope="module", params=["authors", *STUDIES])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The authors' runs, and made-up studies that leave room in other places."""
    if request.param == "authors":
        return read(reference.PATH)
    folder = made_up.folder(tmp_path_factory.mktemp(request.param), made_up.study(**STUDIES[request.param]))
    return read(folder)


def written_on(fig: Any) -> Iterator[tuple[str, Any]]:
    """Every legend, list and number inside the frames of a figure."""
    from matplotlib.offsetbox import AnchoredText

    for ax in fig.axes:
        if ax.get_legend():
            yield "legend", ax.get_legend()
        yield from (("list", a) for a in ax.artists if isinstance(a, AnchoredText))
        yield from (("number", t) for t in ax.texts if len(t.get_text()) == 1 and t.get_bbox_patch())


@pytest.mark.parametrize("overlay", [False, True], ids=["alone", "with-published"])
def test_nothing_stands_over_data_in_figure2(study: Results, authors: Results, overlay: bool) -> None:
    """The picture without legend, list and numbers has no marker, line or whisker where they stood."""
    judged = verdicts.judge(study)
    fig = figure2.draw(scopes.main(study), study.depth, judged, scopes.main(authors) if overlay else None)
    fig.canvas.draw()
    found = [(what, a, a.get_window_extent() if what != "number" else circle(a)) for what, a in written_on(fig)]
    assert found[0][0] == "legend"
    for _, artist, _ in found:
        artist.set_visible(False)
    fig.canvas.draw()
    picture = np.asarray(fig.canvas.buffer_rgba())[:, :, :3]
    for what, artist, box in found:
        low, high = picture.shape[0] - int(box.y1), picture.shape[0] - int(box.y0)
        under = picture[low + 1 : high, int(box.x0) + 1 : int(box.x1)]
        darkest = 250 if what == "legend" else 0xC8  # shades are no data
        assert under.size == 0 or under.min() >= darkest, (what, artist)


def circle(number: Any) -> Any:
    return number.get_bbox_patch().get_window_extent()


def test_a_legend_without_a_free_corner_stands_above_the_frame(tmp_path: Path) -> None:
    """In the middle of the data it would hide some."""
    results = read(made_up.folder(tmp_path, made_up.study(**STUDIES["everywhere"])))
    ax = figure2.draw(scopes.main(results), results.depth, []).axes[0]
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def numbers(fig: Any) -> list[int]:
    return sorted(int(t.get_text()) for what, t in written_on(fig) if what == "number")


def test_every_explanation_that_is_listed_has_its_number_in_the_picture(authors: Results) -> None:
    """On the authors' logs: those of the paper, called so, with what these logs decide."""
    judged = verdicts.judge(authors)
    fig = figure2.draw(scopes.main(authors), 8, judged)
    assert numbers(fig) == [2, 3, 4, 5]
    said = " ".join(" ".join(t.get_text().split()) for t in fig.axes[1].texts)
    assert "The labels are the paper's own, whatever these logs decide" in said
    assert "2 supported, 3 not decided, 4 supported, 5 not decided" in said
    assert len(placing.strokes(fig.axes[1])) > 1000


def test_an_explanation_stands_where_its_claim_is_supported_and_nowhere_else(tmp_path: Path) -> None:
    """Whatever the lines look like: the verdict decides."""
    results = read(made_up.folder(tmp_path, made_up.study(splits=range(5), treatments=EVERY)))
    scope, judged = scopes.main(results), verdicts.judge(results)
    keys = {v.claim.key for v in judged}
    for number, explanation in figure2.EXPLANATIONS.items():
        assert explanation.claim in keys
        for verdict in ("supported", "contradicted", "not decided"):
            said = [replace(v, verdict=verdict if v.claim.key == explanation.claim else "not decided") for v in judged]
            assert list(figure2.explained(said, scope, 8)) == ([number] if verdict == "supported" else [])
    assert figure2.explained(judged, scope, 8)[2] in (4, 5), "where the made-up dip is"
    assert numbers(figure2.draw(scope, 8, judged)) == sorted(figure2.explained(judged, scope, 8))
    assert not numbers(figure2.draw(scope, 8, []))


def test_studies_without_any_effect_are_not_explained() -> None:
    """In at most a few per cent of them, by chance; never with fewer units than an interval needs."""

    def explains(generator: int, **shape: Any) -> bool:
        rows = made_up.study(**shape, treatments=EVERY, effect=made_up.nothing, noise=0.01, generator=generator)
        frame, score, _ = check(rows, "made-up")
        results = Results(frame, score, Path("made-up"), 8)
        return bool(figure2.explained(verdicts.judge(results), scopes.main(results), 8))

    some = ({"splits": range(3)}, {"splits": range(8)}, {"splits": (0,), "seeds": range(4)})
    assert sum(explains(g, **shape) for shape in some for g in range(40)) <= 6
    few = ({"splits": range(2)}, {"splits": (0,), "seeds": (0, 1)})
    assert not any(explains(g, **shape) for shape in few for g in range(20))


def fewer_images(counts: Sequence[int], **where: Any) -> pd.DataFrame:
    """Bases on all classes, or where `where` says, on so many images per class."""
    rows = made_up.study(splits=(0,), layers=(1, 3), depth=4)
    base = rows[rows["treatment"] == "base"].iloc[0].to_dict()
    base |= {"split": "all", "split_seed": None, "target": "all", "classes": 10, "recipe": "short", **where}
    more = [
        {**base, "images_per_class": k, "cell": f"fewer/{k}", "task": f"t{k}", "top1_last": 0.1 + k / 2000}
        for k in counts
    ]
    return pd.concat([rows, pd.DataFrame(more)], ignore_index=True)


def test_supplement_is_drawn_from_two_counts_on(tmp_path: Path) -> None:
    """In both forms, in the page with an alt text that holds its numbers; not with one count, nor is it missed."""
    two = analysis.write(made_up.folder(tmp_path / "two", fewer_images([10, 500])))
    assert {"supplement.png", "supplement.svg"} <= {p.name for p in two.paths}
    page = (two.out / "report.html").read_text()
    assert re.search(r'aria-label="[^"]*10 10\.50, 500 35\.00; chance 10\.00"', page)
    assert "another setting" not in page
    one = analysis.write(made_up.folder(tmp_path / "one", fewer_images([10])))
    assert "supplement.png" not in {p.name for p in one.paths}
    assert not any(line.startswith("supplement:") for line in one.skipped)


def test_supplement_takes_what_differs_in_nothing_else(tmp_path: Path) -> None:
    """Another recipe, half or seed is another series; nothing right at all is still drawn, on the linear scale."""
    frame = fewer_images([10, 50, 500])
    frame.loc[frame["cell"] == "fewer/500", "recipe"] = "long"
    frame.loc[frame["cell"] == "fewer/10", "top1_last"] = 0.0
    results = read(made_up.folder(tmp_path, frame))
    assert supplement.means(results) == pytest.approx({10: 0.0, 50: 0.125})
    linear, logarithmic = supplement.draw(results).axes
    assert linear.get_ylim()[0] <= 0
    assert logarithmic.get_yscale() == "log"
    frame.loc[frame["cell"] == "fewer/10", "seed"] = 1
    assert "no two bases" in str(supplement.reason_against(read(made_up.folder(tmp_path / "seeds", frame))))


BNB = {
    "selffer": (0.61664, 0.61608, 0.61196, 0.59748, 0.58788, 0.61080, 0.61540),
    "selffer-preserve1": (0.61944, 0.62212, 0.61428, 0.60448, 0.58748, 0.61200, 0.61532),
    "selffer-preserve2": (0.62848, 0.62164, 0.61400, 0.60380, 0.58520, 0.61256),
}
"""the authors' unpublished single runs, as typed into their notebook"""


def preserving(seeds: Sequence[int] = (0,)) -> pd.DataFrame:
    """Those numbers on one half, and plain BnB on the other half and of another seed, which preserve nothing."""
    rows = made_up.study(splits=(0,), seeds=(0, 1), treatments=("base", "selffer"))
    here = (rows["target"] == "A") & rows["seed"].isin(seeds) & (rows["treatment"] == "selffer")
    made = []
    for treatment, accuracies in BNB.items():
        for cell in rows[here & (rows["n"] <= len(accuracies))].to_dict("records"):
            name = f"{treatment}/{cell['cell']}"
            made.append({**cell, "treatment": treatment, "cell": name, "top1_last": accuracies[cell["n"] - 1]})
    return pd.concat([rows[~here], pd.DataFrame(made)], ignore_index=True)


def test_preserved_layers_stand_beside_their_plain_treatment(tmp_path: Path) -> None:
    """On the tasks and seeds that have them; the main lines do not see them."""
    results = read(made_up.folder(tmp_path, preserving()))
    assert not any("no figure here knows" in note for note in results.notes)
    scope = preserved.beside(scopes.main(results))
    assert preserved.found(scope) == {"selffer": ["selffer-preserve1", "selffer-preserve2"]}
    for treatment, accuracies in BNB.items():
        means = figure2.lines_of(scope, treatment)
        assert [means[n].mean for n in sorted(means)] == pytest.approx(accuracies)
    table = preserved.table(results)
    assert table.rows[1][:4] == ["BnB", "2", "61.61 (1)", "62.21 (1)"]
    assert table.rows[1][4].startswith("+0.60 (1 seed")
    assert table.rows[6][5:] == ["-", "-"], "with 7 of 8 layers frozen there are no two to preserve"
    without = read(made_up.folder(tmp_path / "without", preserving().query("~treatment.str.contains('preserve')")))
    assert figure2.lines(scopes.main(results)) == figure2.lines(scopes.main(without)), "never pooled"
    panel = preserved.draw(results).axes[0]
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["BnB", "BnB, preserve 1", "BnB, preserve 2"]
    assert len({style.look(t).marker for t in BNB}) == len({str(style.look(t).line) for t in BNB}) == 3, (
        "without colour"
    )


def test_preserved_layers_are_written_only_where_there_are_some(tmp_path: Path) -> None:
    """Figure, table and page; and an older study's do not stay behind."""
    files = {f"preserved.{kind}" for kind in ("png", "svg", "md", "tex", "csv")}
    first = analysis.write(made_up.folder(tmp_path / "first", preserving()), tmp_path / "out")
    assert files <= {p.name for p in first.paths}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "BnB, n = 2: plain 61.61 (1), preserve 1 62.21 (1)" in page
    assert "Preserved layers above the frozen ones" in page
    analysis.write(made_up.folder(tmp_path / "second", made_up.study(splits=(0,))), tmp_path / "out")
    assert not files & {p.name for p in (tmp_path / "out").iterdir()}
    assert "reserve" not in (tmp_path / "out" / "report.html").read_text()


def test_top_panels_of_figure3_say_how_many_networks_stand_behind_them(authors: Results) -> None:
    """Units and networks under every n, diverged ones counted."""
    left, right = figure3.draw(authors).axes[:2]
    counts = [[t.get_text() for t in ax.texts if re.match(r"\d+ \(", t.get_text())] for ax in (left, right)]
    assert counts[0] == ["1 (1)"] * 16, "two targets, n = 0 to 7"
    assert counts[1] == [f"1 (1){' ×1' if n in (3, 7) else ''}" for n in range(8)]
    assert {"natural", "man-made"} <= {t.get_text() for t in left.texts}


def dotted(ax: Any) -> list[list[tuple[float, float]]]:
    """The published lines of a panel."""
    found = [a for a in ax.lines if a.get_linestyle() == ":" and a.get_marker() not in ("None", "")]
    return [list(zip(map(float, a.get_xdata()), map(float, a.get_ydata()), strict=True)) for a in found]


def caption_of(fig: Any) -> str:
    return " ".join(" ".join(t.get_text() for ax in fig.axes for t in ax.texts).split())


TOP = (
    (0, 0, "natural", ("3-top-left", "baseB"), ("3-top-left", "AnB")),
    (0, 1, "man-made", ("3-top-left", "baseA"), ("3-top-left", "BnA")),
    (1, 0, "random filters", ("3-top-right", "base1000"), ("3-top-right", "random-frozen")),
)
"""panel, line, its name, and the published base and points; the paper's A is man-made"""


def test_published_lines_of_figure3s_top_panels_start_at_this_studys_bases(
    tmp_path: Path, authors: Results, published: list[dict[str, str]]
) -> None:
    """Every point of the paper's top panels, each line moved by one number, which the caption says; only if asked."""
    frame = made_up.study(splits=(0, 1, 2), semantic=True, random_filters=True)
    results = read(made_up.folder(tmp_path, frame))
    bases = frame[frame["treatment"] == "base"].groupby(["split", "target"])["top1_last"].mean()
    ours = {
        "natural": bases["semantic", "A"],
        "man-made": bases["semantic", "B"],
        "random filters": bases["all", "all"],
    }
    fig = figure3.draw(results, authors)
    for panel, line, name, base, kind in TOP:
        points = {int(p["n"]): float(p["top1"]) for p in published if (p["figure"], p["treatment"]) in (base, kind)}
        move = ours[name] - points[0]
        drawn = dict(dotted(fig.axes[panel])[line])
        assert drawn == pytest.approx({n: y + move for n, y in points.items()}, abs=1e-5), name
        assert len(drawn) == 8 and f"{name} {100 * move:+.1f}" in caption_of(fig)
    plain = figure3.draw(results)
    assert not any(dotted(ax) for ax in plain.axes) and "Dotted" not in caption_of(plain)


def test_published_preserved_layers_start_at_this_studys_bases(
    tmp_path: Path, authors: Results, published: list[dict[str, str]]
) -> None:
    """All 40 values, moved by what the base of their half differs from this study's; only if asked."""
    frame = preserved_everywhere(splits=(0, 1, 2), treatments=("base", "selffer", "transfer"))
    results = read(made_up.folder(tmp_path, frame))
    base = frame.loc[frame["treatment"] == "base", "top1_last"].mean()
    theirs = {p["run"]: float(p["top1"]) for p in published if p["run"] in ("half0A", "half0B")}
    fig = preserved.draw(results, authors)
    count = 0
    for ax, kind, half in zip(fig.axes, ("BnB", "AnB"), ("half0A", "half0B"), strict=True):
        move = base - theirs[half]
        assert f"{kind} {100 * move:+.1f}" in caption_of(fig)
        names = (kind, f"{kind}-preserve1", f"{kind}-preserve2")
        for name, line in zip(names, dotted(ax), strict=True):
            points = {
                int(p["n"]): float(p["top1"]) for p in published if (p["figure"], p["treatment"]) == ("preserved", name)
            }
            assert [round(x) for x, _ in line] == sorted(points)
            assert [y for _, y in line] == pytest.approx([points[n] + move for n in sorted(points)], abs=1e-5)
            count += len(line)
    assert count == 40
    plain = preserved.draw(results)
    assert not any(dotted(ax) for ax in plain.axes) and "otted" not in caption_of(plain)


def preserved_everywhere(**shape: Any) -> pd.DataFrame:
    """A made-up study, and its frozen networks once more with one and two layers preserved."""
    frame = made_up.study(**shape)
    frozen = frame[frame["treatment"].isin(["selffer", "transfer"])]
    copies = [
        frozen[frozen["n"] <= 8 - k].assign(
            treatment=frozen["treatment"] + f"-preserve{k}", cell=f"preserve{k}/" + frozen["cell"]
        )
        for k in (1, 2)
    ]
    return pd.concat([frame, *copies], ignore_index=True)


@pytest.mark.parametrize("noise", [0.001, 0.2])
def test_no_legend_stands_over_data_in_the_other_figures(tmp_path: Path, authors: Results, noise: float) -> None:
    """Nor over a title or a neighbour: Figure 3's and the preserved layers' stand in a free corner, else above."""
    frame = preserved_everywhere(splits=range(4), semantic=True, random_filters=True, noise=noise)
    results = read(made_up.folder(tmp_path, frame))
    for fig in (figure3.draw(results, authors), preserved.draw(results, authors), preserved.draw(results)):
        fig.canvas.draw()
        seen = [ax for ax in fig.axes if ax.get_legend()]
        for ax in seen:
            box = ax.get_legend().get_window_extent()
            assert not placing.hidden(placing.strokes(ax), box)
            assert not ax.get_title() or not box.overlaps(ax.title.get_window_extent())
            assert not any(box.overlaps(other.get_window_extent()) for other in fig.axes if other is not ax)
        assert seen
