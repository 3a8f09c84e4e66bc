"""Data sets, in memory or read a batch at a time, one datum per row. Knows no model.

Numbers keep their values, whatever their type: 8-bit values of a tensor, an array or a numpy file are not divided by
255 unless you ask for it (``scale=255``, or `EightBit`). Only pictures become values in [0, 1], because their formats
say what the largest value is: image files, images of Pillow, and the named data sets.
"""

from pyro_vae.data.batch import cut, pieces
from pyro_vae.data.batches import Rows, as_rows, count_in, shuffled_batches, total_of
from pyro_vae.data.binarize import BINARIZE, dynamic, threshold
from pyro_vae.data.conversion import as_stored, as_tensor, collated
from pyro_vae.data.factors import Sprites, sprites
from pyro_vae.data.fingerprints import digest_of, fingerprint, range_of
from pyro_vae.data.images import open_image
from pyro_vae.data.loading import are_images, load, located
from pyro_vae.data.named import NAMES, TORCHVISION, import_torchvision_datasets
from pyro_vae.data.parts import Data
from pyro_vae.data.rows import Columns, EightBit, MemoryMapped
from pyro_vae.data.streams import Ready, Stream

__all__ = [
    "BINARIZE",
    "NAMES",
    "TORCHVISION",
    "Columns",
    "Data",
    "EightBit",
    "MemoryMapped",
    "Ready",
    "Rows",
    "Sprites",
    "Stream",
    "are_images",
    "as_rows",
    "as_stored",
    "as_tensor",
    "collated",
    "count_in",
    "cut",
    "digest_of",
    "dynamic",
    "fingerprint",
    "import_torchvision_datasets",
    "load",
    "located",
    "open_image",
    "pieces",
    "range_of",
    "shuffled_batches",
    "sprites",
    "threshold",
    "total_of",
]
