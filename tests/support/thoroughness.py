"""The number of examples of a property test: few in `make test`, many in `make test-faults`."""

import os

import pytest

THOROUGH = bool(os.environ.get("THOROUGH"))

# Marks a property test that `make test-faults` runs again, with many examples.
property_test = pytest.mark.thorough


def examples(few: int, many: int) -> int:
    """Return `many` if this run is thorough, as `make test-faults` is; else `few`."""
    return many if THOROUGH else few
