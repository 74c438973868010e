"""Checkpoints from elsewhere: what a cell of the table names becomes a verified file in a directory of downloads.

`sources` reads the cell, which needs no network; `offers` asks the site what it has (`civitai`, `hugging_face`), `download`
brings the bytes over `web`, `store` keeps them under their SHA-256, and `job` is what the workflow's rule calls.
"""
