"""Checkpoints: what users bring, read in whatever form it comes.

`containers` and `pickles` read files and folders, `finding` finds the networks in them, `prediction` what a denoiser predicts,
`recipes` and `merging` make one checkpoint of several, `conversion` one safetensors file of any form; `writing` writes it.
"""
