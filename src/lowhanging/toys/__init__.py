"""Losses whose answers are known in closed form, each a `FunctionObjective` that every tool takes.

The post's cartoons (`flat_canyons`, `sloped_canyons`, `canyon_figure`), `quadratic` and `redundant_circuits`;
`embedded` puts a loss into more dimensions, `copies` sets several side by side. `gradient_path` follows descent on
any small loss. `redundant_sum` is the toy sum of the post in numbers.
"""

from lowhanging.toys.losses import canyon_figure, copies, embedded, flat_canyons, quadratic, sloped_canyons
from lowhanging.toys.paths import GradientPath, gradient_path, on_axis
from lowhanging.toys.redundant import RedundantSum, redundant_circuits, redundant_sum

__all__ = [
    "GradientPath",
    "RedundantSum",
    "canyon_figure",
    "copies",
    "embedded",
    "flat_canyons",
    "gradient_path",
    "on_axis",
    "quadratic",
    "redundant_circuits",
    "redundant_sum",
    "sloped_canyons",
]
