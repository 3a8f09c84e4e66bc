"""Files that are written whole or not at all, and never through links; their names as text. Knows no torch."""

import errno
import os
import stat
from pathlib import Path
from tempfile import TemporaryFile


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, also one at which the process is killed, the old or the new one stands.

    The new one is written beside the old one, brought to the disk, read again and compared, and only then renamed. A
    link in the place of either is replaced, and not followed.

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
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is {_kind(path)}, no file that could be written anew")
    temporary = partial_of(path)
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # x: not through a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != content:
            raise OSError(f"{temporary} does not hold what was written to it")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            _name(error, path)
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # of disks that do this for no folder
                raise
        finally:
            os.close(folder)


def partial_of(path: Path) -> Path:
    """Return where a file is while it is being written: one that is left there is of a process that was killed.

    Example:
        >>> partial_of(Path("run/config.yaml")).name
        '.config.yaml.partial'
    """
    return path.with_name(f".{path.name}.partial")


def append(path: Path, content: bytes) -> None:
    """Append to a file in one write, but not through a link.

    Raises:
        OSError: where it cannot be written, or is a link.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> append(path, b"one "), append(path, b"two")
        (None, None)
        >>> path.read_bytes()
        b'one two'
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(path, flags, 0o666), "ab") as file:
            file.write(content)
    except OSError as error:
        _name(error, path)
        raise


def _name(error: OSError, path: Path) -> None:
    """Have an error of the system name the file, which that of a write does not."""
    if error.errno and not error.filename:
        error.filename = str(path)


def takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder: it is tried, as permissions know nothing of full disks and of ``/proc``.

    Example:
        >>> takes_files(Path("no-such-folder"))
        False
    """
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_no_link(path: Path) -> None:
    """Refuse a link where a run's own folder or file is to be.

    Raises:
        ValueError: with where the link leads.

    Example:
        >>> check_no_link(Path("no-such-file"))
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {os.readlink(path)}, and is not followed: remove it")


def check_apart(path: Path, data: str) -> None:
    """Refuse a result in the place of a file of data, or in a folder of them, where it would be read as a datum.

    Arguments:
        path: where the result is to be written.
        data: an absolute path, or the name of a data set, which lies elsewhere.

    Raises:
        ValueError: with the fix.

    Example:
        >>> check_apart(Path("/images/run"), "/images")
        Traceback (most recent call last):
        ...
        ValueError: /images/run lies in the data, /images, and would be read as a part of them: give another place
    """
    source, place = Path(data).resolve(), path.resolve()
    if os.path.isabs(data) and (source == place or source in place.parents):
        raise ValueError(f"{path} lies in the data, {data}, and would be read as a part of them: give another place")


def check_regular(path: str | Path) -> None:
    """Refuse what is there but is no ordinary file, such as a pipe, from which reading might never end.

    Raises:
        ValueError: with what it is.

    Example:
        >>> check_regular("/dev/null")
        Traceback (most recent call last):
        ...
        ValueError: /dev/null is a device, no ordinary file, and is not read
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is {_kind(path)}, no ordinary file, and is not read")


def _kind(path: str | Path) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(os.stat(path).st_mode), "a device")


def printable(text: str) -> str:
    r"""Return text with all but visible characters and spaces escaped: a terminal obeys some, such as of a file's name.

    Example:
        >>> printable("x\x1b[31m.npy")
        'x\\x1b[31m.npy'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
