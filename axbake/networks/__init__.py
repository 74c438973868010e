"""What families are composed of: networks, with the names that files give their tensors, their configs and their graphs.

`component` has the values; `clip`, `unet` and `autoencoder` the networks themselves. Nothing here imports torch before a network
is built, so that reading the workflow does not wait for it.
"""
