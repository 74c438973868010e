"""Bundles: directories that on-board programs load as they are, in the layouts of those that are published."""
