"""What every adapter of a port keeps to: the same tests for the real ones and for the fakes."""

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
