"""Run the notebooks under nbval on the smallest profile, in a folder of their own."""

import atexit
import os
import tempfile

import pytest

failed = []


def pytest_collection_finish(session):
    # Kernels inherit the environment; the notebooks' own folder of results stays untouched.
    folder = tempfile.TemporaryDirectory(prefix="repro-nbval-")
    atexit.register(folder.cleanup)
    os.environ["REPRO_RESULTS"] = folder.name
    os.environ["REPRO_PROFILE"] = "smoke"
    os.environ["REPRO_DEVICE"] = "cpu"


def pytest_runtest_setup(item):
    # nbval would go on after a failing cell and bury the cause under its consequences.
    if failed:
        pytest.skip(f"{failed[0]} failed before")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        failed.append(item.nodeid.removeprefix("notebooks/"))
    return report
