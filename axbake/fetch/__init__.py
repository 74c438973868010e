"""Checkpoints from elsewhere: what a cell of the table names becomes a verified file in a directory of downloads.

`sources` reads the cell, which needs no network; `sites` asks the site in question (`civitai`, `hugging_face`) for an offer, and
`answers` takes its words as what they should be; `download` brings the bytes over `web` and its `line`, `forms` says what they
are, `store` keeps them under their SHA-256, and `job` is what the workflow's rule calls.
"""
