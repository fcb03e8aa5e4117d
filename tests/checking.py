"""Whether shapes are checked in this run, as in `tests/architecture/test_shapes_checked.py`."""

import pytest

from vit_pytorch.layers.blocks import DropPath

# The checker wraps the functions of the package; tracing does not go through it.
SHAPES_ARE_CHECKED = hasattr(DropPath.forward, "__wrapped__")
traces = pytest.mark.skipif(SHAPES_ARE_CHECKED, reason="tracing does not go through the checker of shapes")
