"""The build cache: results of costly jobs, found again by the content of all that decides them.

Jobs, checkouts, users and cluster nodes share one directory, also over a network file system:

    entries/{step}/{component}/{key}.json   what was built: the key in full, outputs, seconds, peak memory
    blobs/ab/{sha256}                       content of outputs
    verified/{inode}.json                   what a blob's owner found when they last read it: size, times, links
    placed/{place}.json                     at which place a blob was put as a copy or clone
    locks/{key}                             held by who builds it; says who that is
    running/{random}.json                   held by who writes; says in which private directory
    damaged/                                what was found damaged, for the curious
    lock                                    shared by who stores or places, alone by who removes garbage

An entry is written last. So whatever is killed, whenever, leaves nothing or garbage, and never a wrong hit. Locks are
`flock`, which the kernel takes from a dead owner; on Linux that works over NFSv4 too. Nothing relies on appending or
on the clocks of two machines.

Whoever shares a cache can write anything into it. So no text of it is a path before its form was checked, no link is followed,
what is no record or no plain file counts as not there and is set aside, and another user's content is checked as it is copied.
SECURITY.md says what remains.
"""

from axbake.cache.entry import Entry
from axbake.cache.key import Key
from axbake.cache.reasons import explain
from axbake.cache.store import Cache, Outcome, cache_directory

__all__ = ["Cache", "Entry", "Key", "Outcome", "cache_directory", "explain"]
