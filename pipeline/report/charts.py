"""The charts, as plotly specifications that the page draws without any network.

Their text is mid-grey and their ground transparent, so that they are legible on light and dark; the page's style sheet
then gives the text the page's own colour.
"""

import json
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from pipeline.console import counting
from pipeline.report import figures
from pipeline.report.figures import ARM_COLOURS, ARM_NAMES
from pipeline.report.tables import served
from pipeline.run import metrics

Row = dict[str, Any]
Chart = dict[str, Any]  # {"data", "layout", "config"}, JSON-ready

GREY, LINE = "#808080", "rgba(128, 128, 128, 0.3)"
TOTAL, DROP = "#7d8590", "#a5830a"
DASHES = {"student": "solid", "sft_only": "dash"}
MAX_MARKERS = 40  # points of a curve; beyond, marks hide the line
# static: fingers that scroll the page never pan a chart, and print shows what the screen shows
CONFIG = {"staticPlot": True, "displayModeBar": False, "responsive": True}


def curves(metrics: list[dict[str, Any]], key: str, title: str) -> Chart:
    """One line per arm over optimizer steps, of rows of train/metrics.jsonl; a step without the key is a gap."""
    figure = go.Figure()
    for arm in dict.fromkeys(row["arm"] for row in metrics):
        rows = [row for row in metrics if row["arm"] == arm]
        figure.add_scatter(
            x=[row["step"] for row in rows],
            y=[row.get(key) for row in rows],
            name=ARM_NAMES.get(arm, arm),
            mode="lines+markers" if len(rows) <= MAX_MARKERS else "lines",
            line={"color": ARM_COLOURS.get(arm, GREY), "dash": DASHES.get(arm, "dot"), "width": 2},
            marker={"size": 5},
        )
    return _lines(figure, 300, {"title": {"text": "optimizer step"}, "rangemode": "tozero"}, {"title": {"text": title}})


def forward_kl(arms: dict[str, Any]) -> Chart | None:
    """A bar per arm but the teacher, whose KL is 0, with its interval; None where none was measured."""
    measured = {
        arm: figure
        for arm in figures.present_arms(arms)
        if arm != "teacher" and (figure := figures.lookup(arms, arm, figures.FIDELITY[0]))
    }
    if not measured:
        return None
    value = [figure["value"] for figure in measured.values()]
    high = [_end(figure, "high") for figure in measured.values()]
    figure = go.Figure()
    figure.add_bar(
        x=value,
        y=[ARM_NAMES[arm] for arm in measured],
        orientation="h",
        width=0.6,
        marker={"color": [ARM_COLOURS[arm] for arm in measured]},
        error_x={
            "array": [h - v for h, v in zip(high, value, strict=True)],
            "arrayminus": [f["value"] - _end(f, "low") for f in measured.values()],
            "color": GREY,
            "thickness": 1.5,
            "width": 6,
        },
    )
    # beyond the whisker, where no bar's own label would stand
    for arm, end in zip(measured, high, strict=True):
        _label(figure, end, ARM_NAMES[arm], figures.nats(measured[arm]["value"]))
    figure.update_layout(
        height=90 + 50 * len(measured),
        showlegend=False,
        xaxis={"title": {"text": "forward KL to the teacher, nats a token"}, "range": [0, 1.25 * max(high)]},
        yaxis={"autorange": "reversed", "showgrid": False},
    )
    return _finished(figure)


def by_position(arms: dict[str, Any]) -> Chart | None:
    """Forward KL by place in the answer, of each arm but the teacher; None where none was measured.

    A full line is of the teacher's chat answers, a dotted one of the arm's own.
    """
    figure = go.Figure()
    for arm in figures.present_arms(arms):
        for section, dash in (("fidelity_chat", "solid"), ("fidelity_own", "dot")):
            buckets = arms[arm].get("breakdowns", {}).get(section, {}).get("position", {})
            of = {name: kl for name, found in buckets.items() if (kl := found.get(metrics.FORWARD_KL_NATS))}
            if not of or arm == "teacher":
                continue
            values = [each["value"] for each in of.values()]
            figure.add_scatter(
                x=list(of),
                y=values,
                name=f"{ARM_NAMES[arm]}{', own answers' if section == 'fidelity_own' else ''}",
                line={"color": ARM_COLOURS[arm], "dash": dash, "width": 2},
                error_y=_spread(of.values(), ARM_COLOURS[arm]),
            )
    if not figure.data:
        return None
    return _lines(
        figure,
        320,
        {"title": {"text": "token of the answer"}, "type": "category"},
        {"title": {"text": "forward KL, nats a token"}, "rangemode": "tozero"},
    )


def trade(points: dict[str, tuple[Row, Row]], front: list[str], label: str, better: str) -> Chart:
    """A point for each run: what is kept over the speed gained, each with its interval; a line through the front."""
    figure = go.Figure()
    figure.add_scatter(
        x=[points[name][0]["value"] for name in front],
        y=[points[name][1]["value"] for name in front],
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 1.5},
    )
    for name, (speed, kept) in points.items():
        colour = ARM_COLOURS["student"] if name in front else GREY
        figure.add_scatter(
            x=[speed["value"]],
            y=[kept["value"]],
            mode="markers",
            marker={"size": 9, "color": colour},
            error_x=_spread([speed], colour),
            error_y=_spread([kept], colour),
        )
        _label(figure, speed["value"], kept["value"], name)
    figure.update_layout(
        height=380,
        showlegend=False,
        xaxis={"title": {"text": "speed, × the teacher"}},
        yaxis={"title": {"text": label}, "autorange": "reversed" if better == "lower" else True},
    )
    return _finished(figure)


def throughput(arms: dict[str, Any]) -> Chart | None:
    """Tokens a second of each arm by requests at once, with the slowest and the fastest round; None below two loads."""
    loads = served.loads(arms)
    if len(loads) < 2:
        return None
    figure = go.Figure()
    for arm in figures.present_arms(arms):
        of = {num: found for num in loads if (found := arms[arm]["speed"].get(f"{served.PREFIX}{num}"))}
        figure.add_scatter(
            x=[str(num) for num in of],
            y=[found["value"] for found in of.values()],
            name=ARM_NAMES[arm],
            mode="lines+markers",
            line={"color": ARM_COLOURS[arm], "width": 2},
            error_y=_spread(of.values(), ARM_COLOURS[arm]),
        )
    return _lines(
        figure,
        300,
        {"title": {"text": "requests at once"}, "type": "category"},
        {"title": {"text": "output tokens a second"}, "rangemode": "tozero"},
    )


def break_even(arms: dict[str, Any], verdict: Row) -> Chart | None:
    """Hours of the machine by tokens served, by the teacher and by the student with all that the run took before.

    None where the speeds or the run's time are not known.
    """
    rates = {arm: arms.get(arm, {}).get("speed", {}).get(metrics.OUTPUT_TOKENS_PER_S) for arm in ("teacher", "student")}
    spent, even = verdict.get(metrics.DISTILLATION_S), verdict.get(metrics.BREAK_EVEN_OUTPUT_TOKENS)
    if not spent or not all(rates.values()):
        return None
    machine = (verdict.get(metrics.MACHINE_GPUS) or {"value": 1})["value"]  # it serves each arm on all of its GPUs
    used = {arm: (arms[arm].get("cost", {}).get("num_gpus") or {"value": machine})["value"] for arm in rates}
    speeds = {arm: rate["value"] * machine / used[arm] for arm, rate in rates.items() if rate}
    if over := verdict.get(metrics.SPEED_OVER_TEACHER):  # the ratio by which the break-even was found
        speeds["student"] = over["value"] * speeds["teacher"]
    last = 2 * (even["value"] if even else spent["value"] * speeds["teacher"])
    figure = go.Figure()
    for arm, before_s in (("teacher", 0), ("student", spent["value"])):
        figure.add_scatter(
            x=[0, last],
            y=[before_s / 3600, (before_s + last / speeds[arm]) / 3600],
            name=f"{ARM_NAMES[arm]}{', the run included' if before_s else ''}",
            mode="lines",
            line={"color": ARM_COLOURS[arm], "width": 2},
        )
    if even:
        figure.add_vline(x=even["value"], line={"color": GREY, "dash": "dot", "width": 1.5})
        told = f"saved after {counting(even['value'])} tokens"
        figure.add_annotation(x=even["value"], y=0, text=told, showarrow=False, xanchor="left", yanchor="bottom")
    return _lines(
        figure,
        300,
        {"title": {"text": "output tokens served"}, "rangemode": "tozero"},
        {"title": {"text": "hours of this machine"}, "rangemode": "tozero"},
    )


def waterfall(num_answers: int, drops: list[tuple[str, int]]) -> Chart:
    """From all answers, by each rule that dropped any, to those that were kept."""
    drops = [drop for drop in drops if drop[1]]
    kept = num_answers - sum(dropped for _, dropped in drops)
    names = ["all answers", *(name for name, _ in drops), "kept"]
    figure = go.Figure()
    figure.add_waterfall(
        orientation="h",
        measure=["absolute", *["relative"] * len(drops), "total"],
        x=[num_answers, *(-dropped for _, dropped in drops), kept],
        y=names,
        connector={"line": {"color": LINE}},
        decreasing={"marker": {"color": DROP}},
        totals={"marker": {"color": TOTAL}},
    )
    left = num_answers
    for name, dropped in [("all answers", 0), *drops, ("kept", 0)]:
        _label(figure, left, name, f"−{figures.whole(dropped)}" if dropped else figures.whole(left))
        left -= dropped
    figure.update_layout(
        height=90 + 34 * len(names),
        showlegend=False,
        xaxis={"title": {"text": "answers"}, "range": [0, 1.25 * max(num_answers, 1)]},
        yaxis={"autorange": "reversed", "showgrid": False},
    )
    return _finished(figure)


def _end(figure: dict[str, Any], end: str) -> float:
    return figure[end] if figures.is_number(figure.get(end)) else figure["value"]


def _spread(of: Iterable[Row], colour: str) -> Row:
    """The whiskers of these figures."""
    measured = list(of)
    return {
        "array": [_end(each, "high") - each["value"] for each in measured],
        "arrayminus": [each["value"] - _end(each, "low") for each in measured],
        "color": colour,
        "thickness": 1,
        "width": 4,
    }


def _label(figure: go.Figure, x: float, y: float | str, text: str) -> None:
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, xanchor="left", xshift=8)


def _lines(figure: go.Figure, height: int, xaxis: Row, yaxis: Row) -> Chart:
    """A chart of several lines, whose names stand above it."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(height=height, showlegend=True, legend=legend, xaxis=xaxis, yaxis=yaxis)
    return _finished(figure)


def _finished(figure: go.Figure) -> Chart:
    axis = {
        "title_font_size": 13,
        "gridcolor": LINE,
        "zerolinecolor": LINE,
        "linecolor": LINE,
        "automargin": True,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(
        template=go.layout.Template(),
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        autosize=True,
    )
    return {**json.loads(figure.to_json() or "{}"), "config": CONFIG}
