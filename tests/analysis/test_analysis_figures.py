"""Figures as pictures: nothing stands over data, and what a study has beside the paper's main figures is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import made_up_studies as made_up
import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import figure2, placing, reference, scope, supplement
from analysis.results import Results, read


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
    fig = figure2.draw(scope.main(study), study.depth, scope.main(authors) if overlay else None)
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
    ax = figure2.draw(scope.main(results), results.depth).axes[0]
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_every_explanation_that_is_listed_has_its_number_in_the_picture(authors: Results) -> None:
    ax = figure2.draw(scope.main(authors), 8).axes[1]
    shown = figure2.shown_explanations(scope.main(authors))
    assert sorted(shown) == [2, 3, 4, 5]
    assert sorted(t.get_text() for what, t in written_on(ax.figure) if what == "number") == ["2", "3", "4", "5"]
    assert len(placing.strokes(ax)) > 1000


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
