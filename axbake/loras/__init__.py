"""LoRAs and their kin: small files that change a checkpoint's weights, fused into them while it is imported.

`rows` reads what the table and its prompts say, `files` what a file is, `fusing` changes the weights.
"""
