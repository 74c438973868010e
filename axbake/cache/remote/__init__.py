"""A build cache that is shared over a network: results that somebody else has built, found by the same keys.

    index.json                  of each entry, what it made: file names, SHA-256, sizes; the one file that a run reads in any case
    entries/{key}.json          the entry as the local cache has it, as a text, and its signature
    blobs/ab/{sha256}           content of outputs

Nothing in it is believed. The index only says what to ask for. An entry counts if somebody whom the project takes entries of has
signed its text, and if that text is the entry of the key that was asked for; a blob, if it has the entry's SHA-256. What fails is
a miss, and is built. So who answers for the remote can withhold results, but not change one.
"""
