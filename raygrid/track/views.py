"""What MLflow's pages open on: saved views, the note of the experiment, links.

A saved view is an experiment tag in a format of MLflow's pages that is documented nowhere. It was read from, and is
tested in a browser against, the MLflow versions that pyproject.toml allows; where it should fail, MLflow opens on its
own default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raygrid.plan import Plan
from raygrid.track.projection import FIGURE, GROUP, KIND, LABELS, MEAN, STATUS, Figures

PREFIX = "mlflow.sharedViewState."
SHOWN = 100
"""runs that MLflow's pages load at once; a curve over more would be drawn from a part of them, silently"""
CREATED = 1790000000000
"""the views' date: fixed, so that writing them again changes nothing"""


def views(figures: Figures) -> dict[str, str]:
    """Experiment tags that are the saved views."""
    found = {}
    for index, (group, cells) in enumerate(figures.groups.items()):
        key, name = ("figure2", "Figure 2") if not index else (f"figure2-{index + 1}", f"Figure 2: {group}")
        if index < 6:
            found[key] = _figure2(name, group, cells)
            found[f"{key}-mean"] = _means(f"{name} (mean over splits)", group)
    found["trials"] = _trials()
    found["failures"] = _failures()
    found["differs"] = _differs()
    return {f"{PREFIX}raygrid-{key}": text for key, text in found.items()}


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
    counts = ", ".join(f"{count} {LABELS[treatment]}" for treatment, count in plan.counts.items())
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


def _figure2(name: str, group: str, cells: int) -> str:
    charts = [
        _line("c1", FIGURE, "top-1 against n"),
        _line("c2", "test/top1", "learning curves"),
        _line("c3", "train/loss", "training loss"),
    ]
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
        charts=[_line("c1", MEAN, "top-1 against n, mean over splits")],
        columns=1,
        height=640,
        shown=_params("treatment"),
    )


def _trials() -> str:
    charts = [
        {
            **_chart("c1", "PARALLEL", "what goes with a high score"),
            "selectedParams": ["treatment", "n", "split", "target"],
            "selectedMetrics": ["final/top1"],
        },
        {
            **_chart("c2", "SCATTER", "top-1 by n"),
            "xaxis": {"key": "n", "type": "PARAM"},
            "yaxis": {"key": "final/top1", "type": "METRIC"},
        },
        _line("c3", "test/top1", "learning curves"),
        {
            **_chart("c4", "SCATTER", "above the base"),
            "xaxis": {"key": "n", "type": "PARAM"},
            "yaxis": {"key": "final/delta_vs_base", "type": "METRIC"},
        },
    ]
    shown = [*_params("treatment", "n", "split", "source", "target", "seed"), "metrics.`final/top1`"]
    return _view("Trials", f"tags.`{KIND}` = 'trial'", charts, columns=2, shown=shown)


def _failures() -> str:
    shown = [f"tags.`{STATUS}`", "tags.`raygrid.reason`", *_params("treatment", "n", "split"), "tags.`raygrid.host`"]
    charts = [_line("c1", "train/loss", "training loss")]
    return _view(
        "Failures", f"tags.`{KIND}` = 'trial' AND attributes.status = 'FAILED'", charts, columns=1, shown=shown
    )


def _differs() -> str:
    chart = {
        **_chart("c1", "DIFFERENCE", "what differs"),
        "compareGroups": ["Parameters", "Model Metrics", "Tags"],
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


def _chart(uuid: str, type_: str, title: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": type_,
        "metricSectionId": "s1",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": SHOWN,
        "displayName": title,
    }


def _line(uuid: str, metric: str, title: str) -> dict[str, Any]:
    return {
        **_chart(uuid, "LINE", title),
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
