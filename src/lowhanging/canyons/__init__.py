"""Canyons: certified local minima of a loss on spheres and energy shells around a basin, followed outwards.

Inside, downwards: shell, sphere_search, point, find, continuation, null.
"""

from lowhanging.canyons.continuation import CanyonEvent, CanyonPath, trace_canyon
from lowhanging.canyons.find import CanyonSet, find_canyons
from lowhanging.canyons.null import CountNull, DepthNull, count_null, depth_null
from lowhanging.canyons.point import CanyonPoint

__all__ = [
    "CanyonEvent",
    "CanyonPath",
    "CanyonPoint",
    "CanyonSet",
    "CountNull",
    "DepthNull",
    "count_null",
    "depth_null",
    "find_canyons",
    "trace_canyon",
]
