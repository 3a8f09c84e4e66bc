"""Plain torch networks from one shape to another. No Pyro here.

A network is built by a call ``network(in_shape, out_shape)``, and maps ``(*batch, *in_shape)`` to
``(*batch, *out_shape)``: all leading dimensions are batch dimensions, so that several particles per datum pass through
at once. Parts (`pyro_vae.encoders`, `pyro_vae.decoders`) make that call, because only they know how many numbers their
distribution needs. To set a width, give them ``functools.partial(MLP, hidden=(256, 128))``.
"""

from pyro_vae.arguments import above, as_function, as_number, as_size, held
from pyro_vae.networks.convolutional import ConvDecoder, ConvEncoder, halved_sizes
from pyro_vae.networks.mlp import MLP
from pyro_vae.networks.ranges import clip_log_variance, deviation, positive, soft_clip
from pyro_vae.networks.recurrent import GRUDecoder, GRUEncoder
from pyro_vae.networks.shapes import (
    Network,
    Shape,
    Sizes,
    as_image_shape,
    as_shape,
    check_event_shape,
)
from pyro_vae.networks.wrappers import FillMissing, with_output_bias

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "FillMissing",
    "GRUDecoder",
    "GRUEncoder",
    "Network",
    "Shape",
    "Sizes",
    "above",
    "as_function",
    "as_image_shape",
    "as_number",
    "as_shape",
    "as_size",
    "check_event_shape",
    "clip_log_variance",
    "deviation",
    "halved_sizes",
    "held",
    "positive",
    "soft_clip",
    "with_output_bias",
]
