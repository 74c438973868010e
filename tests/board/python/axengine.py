"""Speaks for pyaxengine where tests only ask whether it is there."""
