"""Precision layer by layer: what each layer's rounding costs, the cheapest recipe within a budget, and where errors arise."""
