"""Attacks on what axbake reads: seeded, so that a run can be repeated."""
