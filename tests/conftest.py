"""For all tests: a build cache of their own."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    os.environ["AXBAKE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
