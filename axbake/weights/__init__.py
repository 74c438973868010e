"""`weights/{component}.safetensors`: a model's networks under diffusers' names, made from what users bring.

`importing` takes a component out of a checkpoint, with LoRAs in it (`text_encoder`: with embeddings and clip skip),
`description` says what the checkpoint is; `files` reads and writes the format, `networks` makes torch modules of it,
`single_file` a checkpoint again.
"""
