"""Recurrent networks, for sequences."""

import math

from torch import Tensor, nn

from pyro_vae.arguments import as_size
from pyro_vae.networks._network import _Network
from pyro_vae.networks.shapes import Sizes


class GRUEncoder(_Network):
    """A gated recurrent unit that reads a sequence, then a linear map of its last state.

    Arguments:
        in_shape: shape of one sequence, (length,) or (length, features).
        out_shape: shape of one output.
        hidden: size of the state, at least 1.
        categories: number of tokens, if the entries of a sequence of shape (length,) are tokens 0 to
            ``categories - 1``, as whole numbers in floats; 0 if they are real numbers.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for a size below 1, and for an ``in_shape`` that is not the shape of a sequence; in ``forward``, for
            tokens outside of the categories.

    Example:
        >>> import torch
        >>> GRUEncoder((7,), (2, 20), categories=10)(torch.zeros(5, 3, 7)).shape
        torch.Size([5, 3, 2, 20])

    Reference:
        Cho et al., 2014, Learning Phrase Representations using RNN Encoder-Decoder, equations 5 to 8; Bowman et al.,
        2016, Generating Sentences from a Continuous Space, section 3.
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, hidden: int = 128, categories: int = 0) -> None:
        super().__init__(in_shape, out_shape)
        tokens = bool(categories) and bool(as_size(categories, "categories"))
        if len(self.in_shape) > (1 if tokens else 2):
            wanted = "(length,) for tokens" if tokens else "(length,) or (length, features)"
            raise ValueError(f"GRUEncoder needs sequences of shape {wanted}, not {self.in_shape}")
        size, features = as_size(hidden, "hidden"), math.prod(self.in_shape[1:])
        self.inner = (self.in_shape[0], features)
        self.embedding = nn.Embedding(categories, size) if tokens else None
        self.recurrent = nn.GRU(size if tokens else features, size, batch_first=True)
        self.last = nn.Linear(size, math.prod(self.out_shape))

    def layers(self, steps: Tensor) -> Tensor:
        if self.embedding is not None:
            steps = self._embedded(self.embedding, steps.squeeze(-1))
        _, state = self.recurrent(steps)
        return self.last(state[0])

    @staticmethod
    def _embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        try:
            return embedding(tokens.long())
        except IndexError as error:
            most, found = embedding.num_embeddings - 1, f"{tokens.min().item():g} to {tokens.max().item():g}"
            raise ValueError(
                f"GRUEncoder takes tokens from 0 to {most}, not {found}: number them from 0, or give more"
            ) from error


class GRUDecoder(_Network):
    """A gated recurrent unit that is fed the code at every step, then a linear map of each of its states.

    It does not see earlier entries of the sequence: given the code, the entries are independent.

    Arguments:
        in_shape: shape of one code; its dimensions are flattened.
        out_shape: shape of one output, of which one dimension is the length.
        hidden: size of the state, at least 1.
        time: which dimension of ``out_shape`` is the length: by default the last, as in (categories, length); -2 for
            (length, features).

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for a size below 1, and if ``out_shape`` has no dimension ``time``.

    Example:
        >>> import torch
        >>> GRUDecoder(20, (10, 7))(torch.zeros(5, 3, 20)).shape
        torch.Size([5, 3, 10, 7])

    Reference:
        Cho et al., 2014, Learning Phrase Representations using RNN Encoder-Decoder, equations 5 to 8.
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, hidden: int = 128, time: int = -1) -> None:
        super().__init__(in_shape, out_shape)
        if not (-len(self.out_shape) <= as_size(time, "time", least=-math.inf) < len(self.out_shape)):
            raise ValueError(f"GRUDecoder's out_shape {self.out_shape} has no dimension {time} to be the length")
        self.time = time % len(self.out_shape)
        self.rest = self.out_shape[: self.time] + self.out_shape[self.time + 1 :]
        size = as_size(hidden, "hidden")
        self.recurrent = nn.GRU(math.prod(self.in_shape), size, batch_first=True)
        self.last = nn.Linear(size, math.prod(self.rest))

    def layers(self, z: Tensor) -> Tensor:
        length = self.out_shape[self.time]
        states, _ = self.recurrent(z.unsqueeze(1).expand(-1, length, -1))
        return self.last(states).reshape(-1, length, *self.rest).movedim(1, 1 + self.time)
