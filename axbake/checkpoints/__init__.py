"""Checkpoints: what users bring, read in whatever form it comes, and made `weights/{component}.safetensors`.

`containers` and `pickles` read files and folders, `parts` finds the networks in them, `prediction` what a UNet predicts,
`recipes` and `merging` make one checkpoint of several, `importing` writes weights; `components` makes torch modules of these,
`single_file` a checkpoint again.
"""
