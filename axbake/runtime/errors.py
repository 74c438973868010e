"""What every error of this package's has in common."""

from __future__ import annotations


class BundleError(ValueError):
    """A model, schedule or setting of a bundle does not fit the others.

    Its text says the value that was found, what was expected, and what to do.
    """
