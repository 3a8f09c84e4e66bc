"""Figures as files."""

import io

from matplotlib.figure import Figure

KINDS = {".png": "agg", ".jpg": "agg", ".pdf": "pdf", ".svg": "svg"}  # of files, and the backend that draws each


def png(figure: Figure, dpi: float = 120) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Arguments:
        figure: any matplotlib figure.
        dpi: pixels per inch, above 0.

    Returns:
        The bytes.

    Example:
        >>> import numpy as np
        >>> from pyro_vae.plots import samples
        >>> png(samples(np.zeros((4, 8, 8))))[1:4]
        b'PNG'
    """
    return as_file(figure, ".png", dpi)


def as_file(figure: Figure, suffix: str, dpi: float = 120) -> bytes:
    """Return a figure as the bytes of a file of one of `KINDS`.

    Arguments:
        figure: any matplotlib figure.
        suffix: ".png", ".jpg", ".pdf" or ".svg".
        dpi: pixels per inch, above 0.

    Returns:
        The bytes.

    Raises:
        ValueError: for another suffix.

    Example:
        >>> import numpy as np
        >>> from pyro_vae.plots import samples
        >>> as_file(samples(np.zeros((4, 8, 8))), ".pdf")[:4]
        b'%PDF'
    """
    if suffix not in KINDS:
        raise ValueError(f"a figure is written as {', '.join(KINDS)}, not as {suffix!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=dpi, backend=KINDS[suffix])
    return buffer.getvalue()
