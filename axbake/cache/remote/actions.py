"""The actions of `axbake cache` on a remote build cache."""

import argparse
import os
from pathlib import Path

from axbake.cache.entry import Entry
from axbake.cache.errors import Damaged
from axbake.cache.remote.errors import RemoteAddressError, RemoteTrouble, SigningError
from axbake.cache.remote.index import size_of_outputs
from axbake.cache.remote.remote import REMOTE, Remote, Trust, remote_settings, signing_key
from axbake.cache.store import Cache, cache_directory
from axbake.errors import AxbakeError
from axbake.printable import shown
from axbake.project import CONFIG
from axbake.table import read_config
from axbake.units import size_of
from axbake.users_files import is_file

MOST_TEXT = 120  # characters of a prompt that are shown


class PushError(AxbakeError):
    """What is to be pushed cannot be."""


def push(options: argparse.Namespace) -> int:
    """Show what would be pushed and what that tells others; push it, if --yes was said.

    Raises:
        PushError, RemoteTrouble, SigningError, RemoteAddressError
    """
    cache, entries = _builds(options)
    remote = _remote(options, cache)
    key = None if options.unsigned else signing_key()
    if key is None and not options.unsigned:
        raise SigningError(
            "AXBAKE_SIGNING_KEY is not set; wanted the path of an SSH key that signs what is pushed. Projects take unsigned"
            " entries only if they say so (cache_unsigned); for these, add --unsigned."
        )
    try:
        lacking = remote.lacking(entries)
    except Damaged as error:
        raise RemoteTrouble(f"{remote.address}: its index is damaged: {error}") from None
    print(f"{len(lacking)} builds that {remote.place.address} lacks, {len(entries) - len(lacking)} that it has")
    for entry in lacking:
        print(f"    {entry.key.name:<46}{size_of(size_of_outputs(entry.outputs)):>12}  built {entry.created}")
    for line in _reveals(lacking):
        print(line)
    if not lacking:
        return 0
    if not options.yes:
        print("Nothing was pushed. `push --yes` pushes these builds.")
        return 1
    try:
        come = remote.push(lacking, cache.blobs, key=key)
    except Damaged as error:
        raise PushError(f"{error}. The build is not pushed; `axbake cache` shows what is damaged.") from None
    print(f"Pushed {len(lacking)} builds, {size_of(come)}, {'not signed' if key is None else f'signed with {key}'}.")
    return 0


def show(options: argparse.Namespace) -> int:
    """Show what a remote holds.

    Raises:
        RemoteTrouble, RemoteAddressError
    """
    remote = _remote(options, Cache(_directory(options)))
    try:
        index = remote.read_index()
    except Damaged as error:
        print(f"{remote.place.address}: its index is damaged: {error}")
        return 1
    blobs = {blob for outputs in index.values() for blob in outputs.values()}
    print(
        f"{remote.place.address}\n{len(index)} builds, {len(blobs)} blobs, {size_of(sum(blob.size for blob in blobs))}"
    )
    return 0


def verify(options: argparse.Namespace) -> int:
    """Read all of a remote, and say what is wrong; exit status 1 if anything is.

    Raises:
        RemoteTrouble, RemoteAddressError, SigningError
    """
    remote = _remote(options, Cache(_directory(options)))
    try:
        count, faults = len(remote.read_index()), remote.verify()
    except Damaged as error:
        print(f"{remote.place.address}: its index is damaged: {error}")
        return 1
    for fault in faults:
        print(shown(fault, 400))
    print(f"{remote.place.address}: {count} builds, {len(faults)} that axbake would not take")
    return 1 if faults else 0


def prune(options: argparse.Namespace) -> int:
    """Remove from a remote what is older than --days, and what no entry needs; exit status 1 if --yes is missing.

    Raises:
        RemoteTrouble, RemoteAddressError
    """
    remote = _remote(options, Cache(_directory(options)))
    going, kept = remote.garbage(days=options.days)
    for name in going:
        print(f"    {shown(name, 200)}")
    if going and not options.yes:
        print(
            f"{len(going)} files, {len(kept)} builds stay. Nothing was removed; `prune --yes` removes the listed files."
        )
        return 1
    if going:
        remote.prune(going, kept)
    print(f"{len(going)} files removed, {len(kept)} builds stay.")
    return 0


REMOTE_ACTIONS = {"push": push, "remote": show, "verify": verify, "prune": prune}


def _directory(options: argparse.Namespace) -> Path:
    return Path(options.directory) if options.directory else cache_directory(None)


def _remote(options: argparse.Namespace, cache: Cache) -> Remote:
    """The remote that is named; whose entries are taken, the environment or the project's config says."""
    _take_settings()
    if options.remote:
        os.environ[REMOTE] = options.remote
    remote = Remote.from_environment(cache.tree)
    if remote is None:
        raise RemoteAddressError(
            "no remote build cache is named; give --remote ADDRESS, or set cache_remote in the config."
        )
    if remote.trust == Trust(None) and options.action == "verify":
        raise SigningError("cache_signers names nobody, so no entry can be verified; set it in the config.")
    return remote


def _take_settings() -> None:
    """Take what the project's config says of a remote, where the environment says nothing."""
    for name, value in remote_settings(read_config(CONFIG) if is_file(CONFIG) else {}).items():
        os.environ.setdefault(name, value)


def _builds(options: argparse.Namespace) -> tuple[Cache, list[Entry]]:
    """The cache, and the builds in it that are to be pushed: those of the targets' current results, or all."""
    if not options.targets:
        cache = Cache(_directory(options))
        return cache, sorted(cache.entries(), key=lambda entry: entry.created)
    from axbake.plan import Planner, dry_run

    run = dry_run(["--forceall", *options.targets])
    cache = Cache(_directory(options))
    found = {entry.key.digest: entry for entry in Planner(run, cache).stored}
    if not found:
        raise PushError(f"{' '.join(options.targets)}: the build cache has none of their builds; bake them first.")
    return cache, list(found.values())


def _reveals(entries: list[Entry]) -> list[str]:
    """What others can read in these entries, in lines."""
    texts: dict[str, None] = {}
    for kind in ("prompt", "negative_prompt", "prompts"):  # the pictures' own first
        values = [
            value for entry in entries for (_, name), value in entry.key.parts.items() if name.split("/")[-1] == kind
        ]
        for value in values:
            several = value if isinstance(value, list) else [value]
            texts |= {one: None for one in several if isinstance(one, str) and one.strip()}
    lines = [
        "Others can read in these: settings, SHA-256 of checkpoints, LoRAs and inputs, versions of tools; and the results."
    ]
    if texts:
        lines.append(
            f"And {len(texts)} prompts, such as: {'; '.join(shown(one, MOST_TEXT) for one in list(texts)[:3])}"
        )
    return lines
