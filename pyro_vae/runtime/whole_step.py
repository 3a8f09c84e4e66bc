"""A step and its optimizer as one CUDA graph."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.batch import Batch, map_tensors, tensors_of
from pyro_vae.runtime.recording import Recorded
from pyro_vae.runtime.steps import Trial


class WholeStep:
    """A step on a GPU that is captured as one CUDA graph, with its optimizer, and then launched by a single call.

    It is captured after its recording has been replayed a few times. Before the graph is used, it is compared with the
    step, from the same state and on the same random numbers, and must change the state in the same way, within the
    recording's tolerance. Batches of another structure than the first, and the calls that check the recording, run the
    ordinary step. If the optimizer's settings change, such as its learning rate, the graph is captured again.

    Arguments:
        step: a function of a batch, a KL weight and the number of data to a tensor. It changes tensors in place, never
            waits for the device, and computes by ``recorded``.
        recorded: the recording of the step's arithmetic.
        optim: the optimizer, a fused one.
        state: returns all tensors that the step changes, except those of the optimizer.
    """

    WARM = 3  # replays of the recording, after which lazy initialization is over

    def __init__(
        self,
        step: Callable[[Batch, Tensor | float, int], Tensor],
        recorded: Recorded,
        optim: torch.optim.Optimizer,
        state: Callable[[], Sequence[Tensor]],
    ) -> None:
        self.step, self.recorded, self.optim, self.state = step, recorded, optim, state
        recorded.graphs = False
        for group in optim.param_groups:
            group |= {"capturable": True} if "capturable" in group else {}
        self.launched = 0
        self.reason = ""
        self._launch: Callable[[], Tensor] | None = None
        self._inputs: list[Tensor] = []
        self._captured_with: list[Any] = []

    def __call__(self, batch: Batch, weight: Tensor | float, count: int) -> Tensor:
        """Return what the step returns."""
        recorded = self.recorded
        ready = recorded.replayed >= self.WARM and recorded.replays(batch, weight, count)
        if self.reason or not ready:
            return self.step(batch, weight, count)
        if self._launch is None or self._captured_with != self._settings():
            return self._capture(batch, weight, count)
        for own, value in zip(self._inputs, tensors_of((batch, weight)), strict=True):
            own.copy_(value)
        recorded.count_replay(batch, weight, count)
        self.launched += 1
        return self._launch()

    def _capture(self, batch: Batch, weight: Tensor | float, count: int) -> Tensor:
        own_batch, own_weight = map_tensors(Tensor.clone, (batch, weight))
        self._inputs = tensors_of((own_batch, own_weight))
        self._captured_with = self._settings()

        def launch() -> list[Tensor]:
            with self.recorded.uncounted():
                self._launch = _on_one_graph(lambda: self.step(own_batch, own_weight, count))
                return [self._launch()]

        # A graph that waits for the device, or cannot be captured, fails. Graphs advance random generators differently.
        trial = Trial(
            launch, lambda: [self.step(batch, weight, count)], self._state, self.recorded.tolerance, noise=False
        )
        if not trial.same:
            self.reason = trial.failure or "its result differs from the ordinary step"
            self._launch = None
            warnings.warn(f"CUDA graph disabled: {self.reason}", RuntimeWarning, stacklevel=3)
        return trial.outputs[0]

    def _state(self) -> list[Tensor]:
        own = [value for values in self.optim.state.values() for value in values.values() if isinstance(value, Tensor)]
        return [*self.state(), *own]

    def _settings(self) -> list[Any]:
        groups = self.optim.param_groups
        settings = [[value for name, value in group.items() if name != "params"] for group in groups]
        return [len(self.optim.state), *settings]  # a parameter with its first gradient gets a new state


def _on_one_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a function's work on the GPU without running it, and return a function that runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def launch() -> Tensor:
        graph.replay()
        return result.clone()  # the next launch overwrites it

    return launch
