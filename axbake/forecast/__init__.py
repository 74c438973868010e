"""How long jobs will take, told before they run: what they have to compute, and how fast this machine was at such work before.

Nothing here decides a result, and no step of a job reaches it: a better forecast builds nothing again.
"""
