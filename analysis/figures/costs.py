"""What models cost, by component."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import figure_data as data
from analysis.figures.page import escaped, finish, legend, pattern, room_of


def costs(*tables: pd.DataFrame) -> go.Figure:
    """Parameters, compute and bytes a token by component, a bar a model; latency where measured."""
    models = data.cost_tables(tables, "costs")
    times = data.latencies(models)
    titles = [f"{label} ({units})" for label, units in data.COST_PANELS.values()]
    titles += [f"{phase} latency (ms)" for phase in times]
    columns = 2 if len(titles) == 4 else 3
    lines = -(-len(titles) // columns)
    height = lines * (60 + 30 * len(models))
    figure = make_subplots(
        lines,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=60 / height if lines > 1 else 0,
    )
    names = {
        name: escaped(label) for name, label in data.labels(models, data.NAME_EMS / 1.5, 2).items()
    }
    components = list(dict.fromkeys(c for t in models.values() for c in t.index))
    for i, column in enumerate(data.COST_PANELS):
        for component in components:
            figure.add_trace(
                go.Bar(
                    y=list(names.values()),
                    customdata=[escaped(name) for name in names],
                    orientation="h",
                    name=component.replace("_", " "),
                    x=[float(t[column].get(component, 0.0)) for t in models.values()],
                    legendgroup=component,
                    showlegend=i == 0,
                    marker={
                        "color": data.cost_colour(component),
                        "pattern": pattern("/" if component == "memory" else ""),
                    },
                    hovertemplate=f"%{{customdata}}, {component}: %{{x:.4s}}<extra></extra>",
                ),
                row=i // columns + 1,
                col=i % columns + 1,
            )
    for i, by_model in enumerate(times.values(), start=len(data.COST_PANELS)):
        figure.add_trace(
            go.Bar(
                y=list(names.values()),
                customdata=[escaped(name) for name in names],
                x=[by_model[n] for n in models],
                orientation="h",
                showlegend=False,
                marker={"color": data.OWN},
                hovertemplate="%{customdata}: %{x:.4g} ms<extra></extra>",
            ),
            row=i // columns + 1,
            col=i % columns + 1,
        )
    for i, title in enumerate(titles):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        ticks = {} if i >= len(data.COST_PANELS) else {"tickformat": "~s"}
        figure.update_xaxes(title_text=title, nticks=5, **ticks, **where)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_layout(barmode="relative", bargap=0.3, legend=legend())
    left = room_of(data.labels(models, data.NAME_EMS / 1.5, 2).values())
    return finish(figure, data.cost_caption(models), plot_height=height, left=left)
