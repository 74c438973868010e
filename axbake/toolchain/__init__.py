"""The program that compiles, as a command: its config, how it is started and ended, what its failures mean, what it makes.

`pulsar2` is a whole build, `compiled` the check of what came out of it.
"""
