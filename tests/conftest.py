"""Options, golden cases and Hypothesis profiles shared by all tests."""

from __future__ import annotations

import os

# One thread, before anything imports torch: tensors here are tiny, and workers that each start two threads
# on two cores were measured nine times slower.  Commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; no test asks the hub

from pathlib import Path

import pytest
import shape_checks
from golden_files import DATA, GoldenCase, golden_paths
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=15, deadline=None, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
settings.register_profile("nightly", max_examples=1000, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=os.environ.get("PRUNEOPT_GOLDEN", str(DATA)),
        help="folder with golden data, one folder a method; default: the cases kept beside the tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    shape_checks.install()  # here, before any test file imports pruneopt
    config.addinivalue_line("markers", "golden(method): runs once for every golden case of a method")
    if not Path(config.getoption("--golden")).is_dir():
        raise pytest.UsageError(f"--golden {config.getoption('--golden')} is not a folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per golden case, so that a failing case hides no other."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    folder = Path(metafunc.config.getoption("--golden")) / marker.args[0]
    cases = [pytest.param(path, id=path.stem) for path in golden_paths(folder)]
    absent = pytest.mark.skip(reason=f"no golden data in {folder}")
    metafunc.parametrize("case", cases or [pytest.param(None, id="none", marks=absent)], indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> GoldenCase:
    """One golden case of the method that the `golden` marker names."""
    return GoldenCase.load(request.param)
