"""What MLflow's pages open on: saved views, the note of the experiment, links.

A saved view is an experiment tag in a format of MLflow's pages that is documented nowhere. It was read from, and is
tested in a browser against, the MLflow versions that pyproject.toml allows; where it should fail, MLflow opens on its
own default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from raygrid.plan import Plan
from raygrid.track.projection import FIGURE, GROUP, KIND, MEAN, STATUS, Figures, label

PREFIX = "mlflow.sharedViewState."
SHOWN = 100
"""runs that MLflow's pages load at once; a curve over more would be drawn from a part of them, silently"""
CREATED = 1790000000000
"""the views' date: fixed, so that writing them again changes nothing"""


def views(figures: Figures, scores: Mapping[str, float | None] | None = None) -> dict[str, str]:
    """Experiment tags that are the saved views. Where all cells of a figure have `scores` (by address), its axis is
    fitted to them: while the grid runs no fixed axis could be right, and MLflow's own begins at 0."""
    found = {}
    for index, (group, cells) in enumerate(figures.groups.items()):
        key, name = ("figure2", "Figure 2") if not index else (f"figure2-{index + 1}", f"Figure 2: {group}")
        if index < 6:
            axis = _axis([(scores or {}).get(address) for address in figures.addresses(group)])
            found[key] = _figure2(name, group, cells, axis)
            found[f"{key}-mean"] = _means(f"{name} (mean over splits)", group)
    found["trials"] = _trials()
    found["failures"] = _failures()
    found["differs"] = _differs()
    return {f"{PREFIX}raygrid-{key}": text for key, text in found.items()}


def _axis(scores: Sequence[float | None]) -> dict[str, float]:
    """Range of a vertical axis, in steps of 0.05; none while a score is missing."""
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return {}
    return {"yMin": max(0.0, math.floor(min(known) * 20 - 0.1) / 20), "yMax": math.ceil(max(known) * 20 + 0.1) / 20}


def view_of(figures: Figures) -> str:
    """Key of the view that shows the whole of Figure 2: from the cells' own runs, or beyond 100 of them from means."""
    most = max(figures.groups.values(), default=0)
    return "raygrid-figure2" if most <= SHOWN else "raygrid-figure2-mean"


def link(server: str, experiment: str, view: str) -> str:
    """Address of a view on a server."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey={view}&compareRunsMode=CHART"


def note(plan: Plan, command: str, links: dict[str, str]) -> str:
    """The experiment's description, in Markdown."""
    study = plan.study
    counts = ", ".join(f"{count} {label(treatment)}" for treatment, count in plan.counts.items())
    lines = [f"## raygrid/{study.name}", ""]
    if study.question:
        lines += [study.question.strip(), ""]
    lines += [
        f"{len(plan.cells)} networks ({study.network.name}, {study.network.layers} layers) on {plan.facts.name}: "
        f"{counts}.",
        "",
        "One run is one network, found again by its tag `raygrid.cell`. `n` is how many layers are copied from a base; "
        "BnB copies from a network trained on the same half of the classes, AnB from the other half, + means that the "
        "copied layers go on learning.",
        "",
    ]
    lines += [f"* [{name}]({target})" for name, target in links.items()]
    lines += ["", f"Open this page again: `{command}`", ""]
    return "\n".join(lines)


# --- the views --------------------------------------------------------------------------------------------


def _figure2(name: str, group: str, cells: int, axis: dict[str, float]) -> str:
    charts = [{**_line("c1", FIGURE), "range": axis}, _line("c2", "test/top1"), _line("c3", "train/loss")]
    return _view(
        name,
        filter_=f"tags.`{KIND}` = 'trial' AND tags.`{GROUP}` = '{group}'",
        charts=charts,
        columns=2,
        group_by="treatment",
        shown=_params("treatment", "n", "split", "target", "seed"),
        warn=cells > SHOWN,
    )


def _means(name: str, group: str) -> str:
    return _view(
        name,
        filter_=f"tags.`{KIND}` = 'figure' AND tags.`{GROUP}` = '{group}'",
        charts=[_line("c1", MEAN)],
        columns=1,
        height=560,
        shown=_params("treatment"),
    )


def _trials() -> str:
    charts = [
        {
            **_chart("c1", "PARALLEL"),
            "selectedParams": ["treatment", "n", "split", "target"],
            "selectedMetrics": ["final/top1"],
        },
        {
            **_chart("c2", "SCATTER"),
            "xaxis": {"key": "n", "type": "PARAM"},
            "yaxis": {"key": "final/top1", "type": "METRIC"},
        },
        _line("c3", "test/top1"),
        {
            **_chart("c4", "SCATTER"),
            "xaxis": {"key": "n", "type": "PARAM"},
            "yaxis": {"key": "final/delta_vs_base", "type": "METRIC"},
        },
    ]
    shown = [*_params("treatment", "n", "split", "source", "target", "seed"), "metrics.`final/top1`"]
    return _view("Trials", f"tags.`{KIND}` = 'trial'", charts, columns=2, shown=shown)


def _failures() -> str:
    shown = [f"tags.`{STATUS}`", "tags.`raygrid.reason`", *_params("treatment", "n", "split"), "tags.`raygrid.host`"]
    charts = [_line("c1", "train/loss")]
    return _view(
        "Failures", f"tags.`{KIND}` = 'trial' AND attributes.status = 'FAILED'", charts, columns=1, shown=shown
    )


def _differs() -> str:
    chart = {
        **_chart("c1", "DIFFERENCE"),
        "compareGroups": ["Parameters", "Model Metrics"],
        "chartName": "What differs",
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
    return _view(
        "What differs", f"tags.`{KIND}` = 'trial'", [chart], columns=1, height=700, shown=_params("treatment", "n")
    )


def _params(*names: str) -> list[str]:
    return [f"params.`{name}`" for name in names]


def _chart(uuid: str, type_: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": type_,
        "metricSectionId": "s1",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": SHOWN,
    }


def _line(uuid: str, metric: str) -> dict[str, Any]:
    return {
        **_chart(uuid, "LINE"),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
        "range": {},
    }


def _view(
    name: str,
    filter_: str,
    charts: Sequence[dict[str, Any]],
    columns: int,
    shown: Sequence[str],
    height: int = 480,
    group_by: str | None = None,
    warn: bool = False,
) -> str:
    group = None
    if group_by:
        group = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": group_by}]}
    section = {
        "uuid": "s1",
        "name": f"{name} (of the first {SHOWN} runs; the whole is in `mean over splits`)" if warn else name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }
    state = {
        "searchFilter": filter_,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [section],
        "isAccordionReordered": True,
        "groupBy": group,
        "hideEmptyCharts": False,
        "compareRunCharts": list(charts),
        "selectedColumns": list(shown),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "viewMaximized": False,
        "runListHidden": False,
        "autoRefreshEnabled": True,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
    }
    return json.dumps({"name": name, "createdAt": CREATED, "state": json.dumps(state)})
