"""The workflow's side of fetching."""

import json
import logging
from pathlib import Path

from axbake.fetch.sources import parse_source
from axbake.fetch.store import DOWNLOADS, fetch

logger = logging.getLogger(__name__)


def fetch_checkpoint(*, source: str, sha256: str, checkpoint: Path, record: Path) -> None:
    """Fetch what *source* names, and link to it.

    A link, since Snakemake removes a job's outputs before it runs the job again: the download itself must not go then.

    Args:
        sha256: that the file must have, or its first ten digits; empty takes what is there.
        checkpoint: link to the file among the downloads.
        record: JSON to write: where the file is from, its digest, base model and licence.

    Raises:
        FetchError
    """
    parsed = parse_source(source)
    assert parsed, f"{source} is a path"
    fetched = fetch(parsed, sha256, DOWNLOADS)
    if fetched.sha256 != sha256:
        logger.warning("To pin this file, write this into the column sha256 of its row: %s", fetched.sha256)
    checkpoint.symlink_to(fetched.path.resolve())
    record.write_text(json.dumps(fetched.record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
