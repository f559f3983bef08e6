"""A plane as surfaces and contours that can be turned and read under the pointer, by plotly.

The only picture here that matplotlib does not draw. Written as a page with plotly's program in it, about 5 MB, it needs
no network and can be sent to a colleague.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from lowhanging.errors import argument_message
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots import contours
from lowhanging.plots.contours import LOWEST, Bands, choose_bands, has_true_proportions, notable
from lowhanging.plots.style import check_kind, step_label, unit_of


def interactive(plane: PlaneSlice, *, name: str | None = None) -> Any:
    """Every loss of a plane as a surface and as contours, one at a time by a menu, on one scale.

    Under the pointer a point tells its steps, its loss and its accuracy. Values that are not finite are holes. Heights
    are logarithmic where `plane_slice` would choose logarithmic levels.

    Args:
        plane: what `lh.plane_slice` returned.
        name: the loss that is shown first; by default the plane's first.

    Returns:
        A `plotly.graph_objects.Figure`, which a notebook shows; `figure.write_html("plane.html")` makes a page that
        needs nothing beside it.

    Raises:
        ImportError: plotly is not installed (`pip install ".[interactive]"`).
        ValueError, TypeError: a name that the plane does not have, or another kind of result.
    """
    check_kind("plane", plane, PlaneSlice, "Pass what lh.plane_slice returned.")
    grids, first = contours.grids_of(plane, "loss"), contours.first_grid(plane, "loss", name)[0]
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        received, expected = "is not installed", "the library of interactive pictures"
        remedy = 'Install it: pip install ".[interactive]"'
        raise ImportError(argument_message("plotly", received, expected, remedy)) from error
    bands = choose_bands(grids.values())
    figure, shown, buttons = go.Figure(), 2 * list(grids).index(first), list[dict[str, Any]]()
    for label, grid in grids.items():
        figure.add_traces([*_surface(go, plane, label, grid, bands), *_contours(go, plane, label, grid, bands)])
        for kind in ("surface", "contours"):
            is_flat, i = kind == "contours", len(buttons)
            layout = {"xaxis.visible": is_flat, "yaxis.visible": is_flat, "title.text": _title(plane, label, grid)}
            traces = {"visible": [j // 2 == i for j in range(4 * len(grids))]}  # two for each entry of the menu
            text = html.escape(f"{label}: {kind}")
            buttons.append({"label": text, "method": "update", "args": [traces, layout]})
    for trace in figure.data[2 * shown : 2 * shown + 2]:
        trace.visible = True
    figure.update_layout(
        template="plotly_white", height=650, margin={"l": 60, "r": 20, "t": 90, "b": 60},
        title={"text": _title(plane, first, grids[first]), "x": 0.5},
        updatemenus=[{"buttons": buttons, "active": shown, "x": 0.0, "xanchor": "left", "y": 1.12, "yanchor": "top"}],
        coloraxis={
            "colorscale": "Viridis", "cmin": 0, "cmax": len(bands.labels) - 1, "showscale": not bands.is_flat,
            "colorbar": {"tickvals": list(range(len(bands.labels))), "ticktext": list(bands.labels),
                         "title": {"text": bands.title(unit_of("loss")), "side": "right"}},
        },
        **_axes(plane, bands, np.concatenate([np.ravel(grid) for grid in grids.values()])),
    )  # fmt: skip
    return figure


def _surface(go: Any, plane: PlaneSlice, name: str, grid: np.ndarray, bands: Bands) -> list[Any]:
    """The surface, and its lowest point."""
    made = go.Surface(
        x=plane.alphas.tolist(), y=plane.betas.tolist(), z=_rows(_heights(grid, bands)),
        surfacecolor=_rows(_positions(grid, bands)), lighting={"ambient": 0.9, "diffuse": 0.3, "specular": 0.05},
        text=_texts(plane, name), hoverinfo="text", name=name, visible=False, coloraxis="coloraxis",
        contours={axis: {"show": True, "color": "rgba(0,0,0,0.15)", "highlight": False} for axis in "xy"},
    )  # fmt: skip
    lowest = notable(plane, name)["lowest"]
    values = np.array([float(plane.lowest(name)[2]) for _ in lowest])
    point = go.Scatter3d(
        x=[a for a, _, _ in lowest], y=[b for _, b, _ in lowest], z=_heights(values, bands).tolist(),
        mode="markers", marker={"size": 4, "color": LOWEST}, hoverinfo="skip", showlegend=False, visible=False,
    )  # fmt: skip
    return [made, point]


def _contours(go: Any, plane: PlaneSlice, name: str, grid: np.ndarray, bands: Bands) -> list[Any]:
    """The contours, and the points worth a name."""
    made = go.Contour(
        x=plane.alphas.tolist(), y=plane.betas.tolist(), z=_rows(_positions(grid, bands)), text=_texts(plane, name),
        hoverinfo="text", name=name, visible=False, coloraxis="coloraxis",
        contours={"start": 0, "end": len(bands.boundaries) - 1, "size": 1}, line={"width": 0.5, "color": "white"},
    )  # fmt: skip
    entries = [(*label, kind == "lowest") for kind, labels in notable(plane, name).items() for label in labels]
    points = go.Scatter(
        x=[a for a, *_ in entries], y=[b for _, b, *_ in entries], mode="markers+text", cliponaxis=False,
        text=[html.escape(label) for *_, label, _ in entries],
        textposition=["top right" if is_lowest else "bottom right" for *_, is_lowest in entries],
        textfont={"color": "white", "shadow": "0 0 3px black, 0 0 3px black"}, hoverinfo="skip", showlegend=False,
        marker={"size": 9, "color": [LOWEST if is_lowest else "white" for *_, is_lowest in entries],
                "line": {"color": "black", "width": 1}}, visible=False,
    )  # fmt: skip
    return [made, points]


def _axes(plane: PlaneSlice, bands: Bands, values: np.ndarray) -> dict[str, Any]:
    """Axes with what a step means, in two dimensions and in three; on the third, values rather than logarithms."""
    norms, is_true, is_log = plane.norms.tolist(), has_true_proportions(plane), bands.kind == "log"
    # A browser's font may lack the double bar.
    labels = [html.escape(step_label(*each)).replace("‖", "|") for each in zip(plane.names, norms, strict=True)]
    x, y = ({"title": {"text": label}} for label in labels)
    z: dict[str, Any] = {"title": {"text": unit_of("loss") + (" (log scale)" if is_log else "")}}
    if is_log:
        z |= {"tickvals": np.log10(bands.boundaries[::2]).tolist(), "ticktext": list(bands.labels[::2])}
    if not bands.is_flat:
        heights = _heights(values[np.isfinite(values)], bands)
        room = 0.02 * float(np.ptp(heights))
        z["range"] = [float(heights.min()) - room, float(heights.max()) + room]
    flat = {"visible": False, "constrain": "domain"}  # shown with the contours
    scaled = {"scaleanchor": "x", "scaleratio": norms[1] / norms[0]} if is_true else {}
    shape = contours.proportion(plane) if is_true else 1.0
    ratio = {"x": 1.1 / max(shape, 1.0), "y": 1.1 * shape / max(shape, 1.0), "z": 0.75}
    camera = {"eye": {"x": 1.0, "y": -1.6, "z": 1.25}, "center": {"x": 0, "y": 0, "z": -0.2}}
    return {
        "xaxis": {**x, "range": plane.alphas[[0, -1]].tolist(), **flat},
        "yaxis": {**y, "range": plane.betas[[0, -1]].tolist(), **flat, **scaled},
        "scene": {"xaxis": x, "yaxis": y, "zaxis": z, "camera": camera, "aspectmode": "manual", "aspectratio": ratio},
    }


def _title(plane: PlaneSlice, name: str, grid: np.ndarray) -> str:
    holes = [] if np.isfinite(grid).all() else [f"holes: NaN or inf, {contours.missing(grid)}"]
    return html.escape("; ".join([f"loss: {name}", *contours.notes(plane, grid), *holes]))


def _heights(grid: np.ndarray, bands: Bands) -> np.ndarray:
    """Losses or their logarithms; NaN where a loss is not finite."""
    heights = np.where(np.isfinite(grid), grid, np.nan)
    return np.log10(heights) if bands.kind == "log" else heights


def _positions(grid: np.ndarray, bands: Bands) -> np.ndarray:
    """Where values lie on the scale: k at boundary number k, whatever the boundaries' distances."""
    numbers = np.arange(len(bands.boundaries), dtype=np.float64)
    positions: np.ndarray = np.interp(_heights(grid, bands), _heights(bands.boundaries, bands), numbers)
    return positions


def _texts(plane: PlaneSlice, name: str) -> list[list[str]]:
    """What a point tells under the pointer; rows follow the second direction, as plotly wants them."""
    accuracies = plane.accuracies.get(name)
    u, v, loss = (html.escape(text) for text in (*plane.names, name))

    def text(i: int, j: int) -> str:
        lines = [f"{u}: {float(plane.alphas[i]):.4g}", f"{v}: {float(plane.betas[j]):.4g}"]
        lines.append(f"{loss}: {float(plane.losses[name][i, j]):.6g}")
        if accuracies is not None:
            lines.append(f"accuracy: {100 * float(accuracies[i, j]):.1f} %")
        return "<br>".join(lines)

    return [[text(i, j) for i in range(len(plane.alphas))] for j in range(len(plane.betas))]


def _rows(values: np.ndarray) -> list[list[float | None]]:
    """(num_alphas, num_betas) -> rows that follow the second direction, holes as None."""
    return [[value if np.isfinite(value) else None for value in row] for row in values.T.tolist()]
