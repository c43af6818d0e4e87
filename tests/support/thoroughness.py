"""How many examples a property is tried with: few in `make test`, many in `make test-faults`."""

import os

import pytest

THOROUGH = bool(os.environ.get("THOROUGH"))

# For a property that `make test-faults` tries again, with all its examples.
property_test = pytest.mark.thorough


def examples(few: int, many: int) -> int:
    """Return the number of examples for this run."""
    return many if THOROUGH else few
