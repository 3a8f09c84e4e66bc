"""Files that are written completely or not at all, and never through links; printable file names. Knows no torch."""

import errno
import os
import shlex
import stat
from pathlib import Path
from tempfile import TemporaryFile


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, even if the process is killed, the complete old or new file is in place.

    The new file is written beside the old one, flushed to the disk, read back and compared, and only then renamed. A
    link in the place of either file is replaced, not followed.

    Arguments:
        path: the file.
        content: its whole content.

    Raises:
        OSError: if the file cannot be written, or does not hold what was written; the old file then stays.

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
    except BaseException as error:  # also a signal
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            _name(error, path)
        raise
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            _name(error, path)
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # some disks cannot do this for folders
                raise
        finally:
            os.close(folder)


def partial_of(path: Path) -> Path:
    """Return the path of a file while it is being written; a file that is left there is from a killed process.

    Example:
        >>> partial_of(Path("run/config.yaml")).name
        '.config.yaml.partial'
    """
    return path.with_name(f".{path.name}.partial")


def append(path: Path, content: bytes) -> None:
    """Append to a file in one write, but not through a link.

    Raises:
        OSError: if the file cannot be written, or is a link.

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
    """Add the file's name to a system error, as a failed write does not name its file."""
    if error.errno and not error.filename:
        error.filename = str(path)


def takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder. This is tried, as permissions say nothing about full disks or ``/proc``.

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
    """Refuse a link in the place of a run's own folder or file.

    Raises:
        ValueError: for a link; the message says where it leads.

    Example:
        >>> check_no_link(Path("no-such-file"))
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {os.readlink(path)}, and is not followed: remove it")


def check_apart(path: Path, data: str) -> None:
    """Refuse to write a result to a data file or into a folder of data, where it would be read as a datum.

    Arguments:
        path: where the result is to be written.
        data: an absolute path, or the name of a data set, which lies elsewhere.

    Raises:
        ValueError: for such a result; the message has the fix.

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
    """Refuse a path that exists but is not an ordinary file, such as a pipe, which might be read without end.

    Raises:
        ValueError: for such a path; the message says what it is.

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


def as_word(path: Path) -> str:
    """Return a path as one word of a command line, which a shell and a parser of flags take for nothing else.

    Example:
        >>> as_word(Path("my run")), as_word(Path("-run"))
        ("'my run'", './-run')
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def printable(text: str) -> str:
    r"""Return text with all but visible characters and spaces escaped, as a terminal would obey control characters.

    Example:
        >>> printable("x\x1b[31m.npy")
        'x\\x1b[31m.npy'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
