"""Archives of arrays, the same bytes every time."""

import io
import zipfile

import numpy as np

ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """*arrays* as an `.npz` file that is the same bytes every time: members sorted, no times, no compression.

    `np.savez` leaves the operating system's mark and the order of the call in the archive.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
        for name, array in sorted(arrays.items()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=ZIP_TIME)
            entry.create_system = 3  # Unix, on any system
            entry.external_attr = 0o644 << 16
            members.writestr(entry, member.getvalue())
    return archive.getvalue()
