"""Results as tables: every class's columns are its fields, the frame is pandas', and a notebook's table holds them."""

import dataclasses
import importlib
import importlib.machinery
import inspect
import sys
import types
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.tables import MOST_ROWS, NotebookTable, Tabular, html_table

MODEL = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
DATA = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2


@pytest.fixture
def pandas(monkeypatch):
    """A module with what is used of pandas."""
    fake = types.ModuleType("pandas")
    fake.DataFrame = dict
    fake.__spec__ = importlib.machinery.ModuleSpec("pandas", None)
    monkeypatch.setitem(sys.modules, "pandas", fake)


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.rows = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        assert not {name for name, _ in attrs} - {"colspan"}

    def handle_data(self, data):
        if self.rows:
            self.rows[-1].append(data)


def tabular_classes():
    found = set()
    for room in ("canyons", "circuits", "curvature", "landscape", "prior", "steering", "testing", "training"):
        module = importlib.import_module(f"lowhanging.{room}")
        found |= {each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, Tabular)}
    return found


def test_the_results_that_are_tables():
    names = {each.__name__ for each in tabular_classes()}
    assert names >= {
        "Eigenpairs", "SpectralDensity", "LineSlice", "PathSlice", "PlaneSlice", "PlaneTrajectory", "SteeringReport",
        "AblationCurve", "CanyonSet", "CanyonPath", "Births", "LearningTimes", "TrainingRun", "StackRun", "ModelCheck",
        "PhaseDiagram", "IndependentBits", "Refinement",
    }  # fmt: skip
    shown = {each.__name__ for each in tabular_classes() if issubclass(each, NotebookTable)}
    assert shown >= {"Eigenpairs", "SteeringReport", "ModelCheck", "CanyonSet"}
    for each in tabular_classes():
        assert dataclasses.is_dataclass(each)
        assert inspect.getdoc(each.columns).startswith("One row for each"), each


def results():
    model, loss = MODEL, lh.Objective(MODEL, DATA)
    pairs = lh.top_eigs(lh.hessian(loss), k=3)
    losses = {"one": loss, "two": lh.Objective(model, (DATA[0][:7], DATA[1][:7]))}
    u, v = lh.random_direction(loss, seed=0), lh.random_direction(loss, seed=1)
    plane = lh.plane_slice(losses, (u, v), extent=1.0, num=(3, 2))
    thetas = torch.stack([loss.theta0, loss.theta0 + u])
    bowl = lh.FunctionObjective(lambda t: (t * t * torch.tensor([1.0, 2.0])).sum(), torch.zeros(2))
    run = lh.train(nn.Linear(4, 2), DATA, num_epochs=2, evaluate={"held out": DATA}, progress=False)
    return {
        "Eigenpairs": pairs,
        "LineSlice": lh.line_slice(losses, u, num=5),
        "PathSlice": lh.path_slice(losses, thetas, num=4),
        "PlaneSlice": plane,
        "PlaneTrajectory": lh.plane_trajectory(plane, thetas, losses=losses),
        "SteeringReport": lh.steering_report(u, losses, k=2),
        "CanyonSet": lh.find_canyons(bowl, metric="euclidean", levels=1.0, num_starts=3),
        "TrainingRun": run,
        "ModelCheck": lh.testing.check_model(model, DATA),
        "SpectralDensity": lh.spectral_density(lh.hessian(loss), num_probes=2, num_steps=5),
    }


def test_columns_are_the_numbers_of_the_result(pandas):
    found = results()
    for name, result in found.items():
        columns = result.to_dataframe()
        lengths = {len(column) for column in columns.values()}
        assert len(lengths) == 1, name
        for value in (each for column in columns.values() for each in column):
            assert value is None or isinstance(value, int | float | str | bool), (name, value)
    pairs, line, plane = found["Eigenpairs"].columns(), found["LineSlice"], found["PlaneSlice"]
    assert pairs["value"] == found["Eigenpairs"].values.tolist()
    assert pairs["residual"] == found["Eigenpairs"].residuals.tolist()
    assert line.columns()["two loss"] == line.losses["two"].tolist()
    assert line.columns()["one accuracy"] == line.accuracies["one"].tolist()
    rows = plane.columns()
    at = [
        i for i in range(6) if rows["alpha"][i] == float(plane.alphas[2]) and rows["beta"][i] == float(plane.betas[0])
    ]
    assert rows["one loss"][at[0]] == float(plane.losses["one"][2, 0])
    assert found["TrainingRun"].columns()["held out loss"] == found["TrainingRun"].losses["held out"].tolist()
    report = found["SteeringReport"]
    assert report.columns()["curvature"] == [report.quotients["one"], report.quotients["two"]]
    assert found["CanyonSet"].columns()["rise"] == [point.rise for point in found["CanyonSet"]]


def test_a_single_loss_keeps_its_plain_name():
    scan = lh.line_slice(lh.Objective(MODEL, DATA), lh.random_direction(lh.Objective(MODEL, DATA)), num=3)
    assert list(scan.columns()) == ["alpha", "loss", "accuracy"]


def test_a_notebook_shows_short_tables_without_styles():
    for name, result in results().items():
        if not isinstance(result, NotebookTable):
            assert not hasattr(result, "_repr_html_"), name
            continue
        cells = Cells(result._repr_html_())
        assert set(cells.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert cells.rows[0] == list(result.columns())
    pairs = results()["Eigenpairs"]
    first = Cells(pairs._repr_html_()).rows[1]
    assert float(first[0]) == pytest.approx(float(pairs.values[0]), rel=1e-3)


def test_long_tables_are_cut_and_names_are_escaped():
    text = html_table("a < b", {"<x>": list(range(MOST_ROWS + 5)), "y": [0.123456] * (MOST_ROWS + 5)})
    assert "<x>" not in text and "a < b" not in text
    cells = Cells(text)
    assert cells.rows[0] == ["<x>", "y"]
    assert cells.rows[1] == ["0", "0.1235"]
    assert len(cells.rows) == 1 + MOST_ROWS + 1
    assert "5 more" in "".join(cells.rows[-1])
    assert Cells(html_table("empty", {"x": []})).rows == [["x"]]


def test_without_pandas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"(?s)pandas is not installed, expected .*\[tables\]"):
        results()["Eigenpairs"].to_dataframe()
