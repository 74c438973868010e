"""Show what the build cache holds (usage), and remove what nothing needs (remove --yes).

Of a remote build cache (docs/remote-cache.md): push to it what it lacks (push [TARGET …] --yes), show what it holds (remote),
look at all its entries and content (verify), and remove what is old (prune --yes).
"""

import argparse
import sys
from pathlib import Path

from axbake.cache.errors import KeepUnreadable
from axbake.cache.garbage import DAYS, Usage, remove_garbage, usage
from axbake.cache.remote.actions import REMOTE_ACTIONS, PushError
from axbake.cache.store import Cache, cache_directory
from axbake.digest import is_sha256
from axbake.printable import shown
from axbake.units import size_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake cache` takes."""
    parser.description = __doc__
    parser.add_argument("--directory", help="directory of the build cache (default: AXBAKE_CACHE, or ~/.cache/axbake)")
    parser.add_argument(
        "--days", type=float, default=DAYS, help="keep results made or used since then (default: %(default)s)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="file of keys that results need, one per line; - is standard input"
    )
    parser.add_argument("--yes", action="store_true", help="really remove, or push")
    parser.add_argument(
        "--remote",
        metavar="ADDRESS",
        help="the remote build cache (default: AXBAKE_CACHE_REMOTE, or cache_remote in the config)",
    )
    parser.add_argument(
        "--unsigned",
        action="store_true",
        help="push without a signature; otherwise AXBAKE_SIGNING_KEY names the SSH key",
    )
    parser.add_argument("action", nargs="?", choices=["usage", "remove", *REMOTE_ACTIONS], default="usage")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="of push: files whose builds are pushed; without: all"
    )


def run(options: argparse.Namespace) -> int:
    """Exit status: 1 if something is to be removed and --yes was not said.

    Raises:
        AxbakeError
    """
    if options.targets and options.action != "push":
        raise PushError(f"{options.action} {' '.join(options.targets)}: only push takes targets.")
    if options.action in REMOTE_ACTIONS:
        return REMOTE_ACTIONS[options.action](options)
    cache = Cache(Path(options.directory) if options.directory else cache_directory(None))
    if not cache.directory.is_dir():
        print(f"{cache.directory}: there is no build cache yet")
        return 0
    used = _digests(options.keep)
    if options.action == "remove" and options.yes:
        _show(cache, remove_garbage(cache, used, days=options.days), "removed")
        return 0
    found = usage(cache, used, days=options.days)
    _show(cache, found, "not needed")
    if options.action == "remove" and found.garbage:
        print("Nothing was removed. `remove --yes` removes the listed files.")
        return 1
    return 0


def _digests(path: Path | None) -> list[str]:
    """The keys in a file of --keep.

    Raises:
        KeepUnreadable
    """
    if path is None:
        return []
    try:
        keys = (sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")).split()
    except (OSError, ValueError) as error:
        raise KeepUnreadable(
            f"{path}: {error}. --keep takes a file of keys, one per line. Nothing was removed."
        ) from error
    if wrong := [key for key in keys if not is_sha256(key)]:
        raise KeepUnreadable(f"{path}: {shown(wrong[0], 80)!r} is not a key of 64 hex digits. Nothing was removed.")
    return keys


def _show(cache: Cache, found: Usage, what: str) -> None:
    print(cache.directory)
    rows = [
        (f"{found.entries} builds, {found.blobs} blobs", found.size),
        ("  linked to results", found.linked),
        (f"  {what}", found.freed),
    ]
    for title, size in rows:
        print(f"{title:<50}{size_of(size):>12}")
    for one in found.garbage:
        place = one.path.relative_to(cache.directory) if one.path.is_relative_to(cache.directory) else one.path
        print(f"    {one.what:<46}{size_of(one.size):>12}  {shown(place, 400)}")
