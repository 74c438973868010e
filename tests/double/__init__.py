"""A test double of `pulsar2`, AXERA's compiler, for the tests of axbake alone; nothing in the package knows of it.

It takes the documented flags and config fields and no others (`documented.json`, made from Pulsar2's documentation and not
from axbake's own tables), prints the documented log, writes the documented output layout, and fails on request in the ways
that people have reported. Its models have the container of a real one, and a graph of axbake's emulator inside, which its
`run` runs. No board can run them, and every one of them says that it is a double's.
"""
