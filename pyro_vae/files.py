"""Files that are written whole or not at all. Knows no torch."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, also one at which the process is killed, the old or the new one stands.

    The new one is written beside the old one, brought to the disk, read again and compared, and only then renamed.

    Arguments:
        path: the file.
        content: all of it.

    Raises:
        OSError: where it cannot be written, or is not what was written; the old file then stands.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> write_whole(path, b"new")
        >>> path.read_bytes(), [other.name for other in path.parent.iterdir()]
        (b'new', ['notes.txt'])
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != content:
            raise OSError(f"{temporary} does not hold what was written to it")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
