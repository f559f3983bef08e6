"""A plane of losses that can be turned, as one HTML file that needs no network.

Plotly's own program is part of it, about 5 MB, so that it can be sent to a colleague or kept beside a paper. The only
picture here that matplotlib does not draw.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowhanging.errors import argument_message
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots.contours import (
    LOWEST,
    Bands,
    choose_bands,
    flat_note,
    grids_of,
    has_true_proportions,
    is_orthogonal,
    missing,
    notable,
    proportion,
    skewed,
)
from lowhanging.plots.style import check_kind, step_label, unit_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLORS = "Viridis"


def interactive(plane: PlaneSlice, *, name: str | None = None) -> str:
    """Every loss of a plane as a surface and as contours, one at a time by a menu, on one scale, in one HTML page.

    Under the pointer a point tells its steps, its loss and its accuracy. Values that are not finite are holes. Heights
    are logarithmic where `plane_slice` would choose logarithmic levels.

    Args:
        plane: what `lh.plane_slice` returned.
        name: the loss that is shown first; by default the plane's first.

    Returns:
        The page, self-contained: `Path("plane.html").write_text(plots.interactive(plane), encoding="utf-8")`. In a
        notebook: `IPython.display.HTML(...)`.

    Raises:
        ImportError: plotly is not installed (`pip install ".[interactive]"`).
        ValueError, TypeError: a name that the plane does not have, or another kind of result.
    """
    check_kind("plane", plane, PlaneSlice, "Pass what lh.plane_slice returned.")
    grids = grids_of(plane, "loss")
    first = next(iter(grids_of(plane, "loss", None if name is None else [name])))
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        remedy = 'Install it: pip install ".[interactive]"'
        raise ImportError(
            argument_message("plotly", "is not installed", "the library of interactive pictures", remedy)
        ) from error
    bands = choose_bands(grids.values())
    figure = go.Figure()
    for label, grid in grids.items():
        figure.add_traces([*_surface(go, plane, label, grid, bands), *_contours(go, plane, label, grid, bands)])
    _lay_out(figure, plane, grids, bands, first)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, div_id="plane", config={"displaylogo": False})
    return page


def _surface(go: Any, plane: PlaneSlice, name: str, grid: np.ndarray, bands: Bands) -> list[Any]:
    """The surface, and its lowest point."""
    made = go.Surface(
        x=plane.alphas.tolist(), y=plane.betas.tolist(), z=_rows(_heights(grid, bands)),
        surfacecolor=_rows(_place(grid, bands)), lighting={"ambient": 0.9, "diffuse": 0.3, "specular": 0.05},
        text=_texts(plane, name), hoverinfo="text", name=name, visible=False, **_colors(bands, "c"),
        contours={axis: {"show": True, "color": "rgba(0,0,0,0.15)", "highlight": False} for axis in "xy"},
    )  # fmt: skip
    lowest = notable(plane, name)["lowest"]
    values = [float(plane.lowest(name)[2]) for _ in lowest]
    point = go.Scatter3d(
        x=[a for a, _, _ in lowest], y=[b for _, b, _ in lowest], z=_heights(np.array(values), bands).tolist(),
        mode="markers", marker={"size": 4, "color": LOWEST}, hoverinfo="skip", showlegend=False, visible=False,
    )  # fmt: skip
    return [made, point]


def _contours(go: Any, plane: PlaneSlice, name: str, grid: np.ndarray, bands: Bands) -> list[Any]:
    """The contours, and the points worth a name."""
    made = go.Contour(
        x=plane.alphas.tolist(), y=plane.betas.tolist(), z=_rows(_place(grid, bands)), text=_texts(plane, name),
        hoverinfo="text", name=name, visible=False, **_colors(bands, "z"),
        contours={"start": 0, "end": len(bands.boundaries) - 1, "size": 1}, line={"width": 0.5, "color": "white"},
    )  # fmt: skip
    found = notable(plane, name)
    entries = [(*label, kind) for kind, labels in found.items() for label in labels]
    points = go.Scatter(
        x=[a for a, *_ in entries], y=[b for _, b, *_ in entries], mode="markers+text", cliponaxis=False,
        text=[html.escape(label) for *_, label, _ in entries],
        textposition=["top right" if kind == "lowest" else "bottom right" for *_, kind in entries],
        textfont={"color": "white", "shadow": "0 0 3px black, 0 0 3px black"}, hoverinfo="skip", showlegend=False,
        marker={"size": 9, "color": [LOWEST if kind == "lowest" else "white" for *_, kind in entries],
                "line": {"color": "black", "width": 1}}, visible=False,
    )  # fmt: skip
    return [made, points]


def _lay_out(figure: Figure, plane: PlaneSlice, grids: dict[str, np.ndarray], bands: Bands, first: str) -> None:
    """The menu, the axes with what a step means, and what is shown first."""
    shown = 2 * list(grids).index(first)
    for trace in figure.data[2 * shown : 2 * shown + 2]:
        trace.visible = True
    norms = plane.norms.tolist()
    # A browser's font may lack the double bar.
    x, y = (html.escape(step_label(*way)).replace("‖", "|") for way in zip(plane.names, norms, strict=True))
    is_true = has_true_proportions(plane)
    shape = proportion(plane) if is_true else 1.0
    flat = {"visible": False, "constrain": "domain"}  # shown with the contours
    scaled = {"scaleanchor": "x", "scaleratio": norms[1] / norms[0]} if is_true else {}
    figure.update_layout(
        template="plotly_white", height=650, margin={"l": 60, "r": 20, "t": 90, "b": 60},
        title={"text": _title(plane, first, grids[first]), "x": 0.5},
        updatemenus=[{"buttons": _buttons(plane, grids), "active": shown, "x": 0.0, "xanchor": "left", "y": 1.12,
                      "yanchor": "top"}],
        xaxis={"title": {"text": x}, "range": _ends(plane.alphas), **flat},
        yaxis={"title": {"text": y}, "range": _ends(plane.betas), **flat, **scaled},
        scene={
            "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "zaxis": _height_axis(grids, bands),
            "camera": {"eye": {"x": 1.0, "y": -1.6, "z": 1.25}, "center": {"x": 0, "y": 0, "z": -0.2}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1.1 / max(shape, 1.0), "y": 1.1 * shape / max(shape, 1.0), "z": 0.75},
        },
    )  # fmt: skip


def _buttons(plane: PlaneSlice, grids: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One entry of the menu per loss and kind of picture; each of these is two traces."""
    views = [(name, kind) for name in grids for kind in ("surface", "contours")]
    made = []
    for i, (name, kind) in enumerate(views):
        is_flat = kind == "contours"
        layout = {"xaxis.visible": is_flat, "yaxis.visible": is_flat, "title.text": _title(plane, name, grids[name])}
        traces = {"visible": [j // 2 == i for j in range(2 * len(views))]}
        made.append({"label": html.escape(f"{name}: {kind}"), "method": "update", "args": [traces, layout]})
    return made


def _title(plane: PlaneSlice, name: str, grid: np.ndarray) -> str:
    parts = [f"loss: {name}", flat_note(grid)]
    parts.append("" if np.isfinite(grid).all() else f"holes: NaN or inf, {missing(grid)}")
    parts.append("" if is_orthogonal(plane) else skewed(plane))
    return html.escape("; ".join(part for part in parts if part))


def _heights(grid: np.ndarray, bands: Bands) -> np.ndarray:
    """Losses or their logarithms; NaN where a loss is not finite."""
    heights = np.where(np.isfinite(grid), grid, np.nan)
    return np.log10(heights) if bands.kind == "log" else heights


def _height_axis(grids: dict[str, np.ndarray], bands: Bands) -> dict[str, Any]:
    """The same heights for every loss, and values rather than their logarithms beside them."""
    title = {"title": {"text": unit_of("loss") + (" (log scale)" if bands.kind == "log" else "")}}
    heights = np.concatenate([np.ravel(_heights(grid, bands)) for grid in grids.values()])
    if bands.is_flat:
        return title
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    room = 0.02 * (high - low)
    made = {**title, "range": [low - room, high + room]}
    if bands.kind == "log":
        made |= {"tickvals": np.log10(bands.boundaries[::2]).tolist(), "ticktext": list(bands.labels[::2])}
    return made


def _place(grid: np.ndarray, bands: Bands) -> np.ndarray:
    """Where values lie on the scale: k at boundary number k, whatever the boundaries' distances."""
    numbers = np.arange(len(bands.boundaries), dtype=np.float64)
    known = np.where(np.isfinite(grid), grid, bands.boundaries[0])
    places = np.interp(_heights(known, bands), _heights(bands.boundaries, bands), numbers)
    return np.where(np.isfinite(grid), places, np.nan)


def _colors(bands: Bands, letter: Literal["c", "z"]) -> dict[str, Any]:
    """Colours of places on the scale, and the bar that says their values."""
    numbers = list(range(len(bands.boundaries)))
    title = {"text": bands.title(unit_of("loss")), "side": "right"}
    return {
        "colorscale": _COLORS, f"{letter}min": 0, f"{letter}max": numbers[-1], "showscale": not bands.is_flat,
        "colorbar": {"tickvals": numbers, "ticktext": list(bands.labels), "title": title},
    }  # fmt: skip


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


def _ends(steps: Any) -> list[float]:
    return [float(steps[0]), float(steps[-1])]


def _rows(values: np.ndarray) -> list[list[float | None]]:
    """(num_alphas, num_betas) -> rows that follow the second direction, holes as None."""
    return [[value if np.isfinite(value) else None for value in row] for row in values.T.tolist()]
