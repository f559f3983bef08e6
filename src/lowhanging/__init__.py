"""lowhanging: the microscope for the low-hanging fruit prior."""

from lowhanging._version import __version__
from lowhanging.errors import NotConvergedError

__all__ = ["NotConvergedError", "__version__"]
