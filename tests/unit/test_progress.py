"""Progress is reported every few seconds, with the total, and at the end."""

import logging

import pytest

from axbake.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_few_seconds_and_when_all_is_done(clock, caplog):
    caplog.set_level(logging.INFO, logger="axbake")
    tell = progress.progress("calibrating:")
    for done in range(1, 65):
        clock[0] += progress.SECONDS / 10
        tell(done, 64)

    said = [record.getMessage() for record in caplog.records]
    assert said == [*(f"calibrating: {done} of 64" for done in (10, 20, 30, 40, 50, 60)), "calibrating: 64 of 64"]
