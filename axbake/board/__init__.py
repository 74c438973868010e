"""The board: bundles that are copied to the host a card sits in, and measured there, over the user's own ssh."""
