"""How a step is computed: by running the Pyro programs, or by replaying a recording of their arithmetic."""

import warnings
from collections.abc import Callable

from pyro_vae.runtime.held import Held
from pyro_vae.runtime.recording import Recorded
from pyro_vae.runtime.steps import Step

ENGINES = ("auto", "eager", "recorded", "compiled")
WORTHWHILE = 400  # steps: recording and checking take about as long as 200 replayed steps save


def chosen(
    step: Step, engine: str, steps: int, *, tolerance: float = 1e-5, blocked: str = ""
) -> tuple[Step, Callable[[], str]]:
    """Choose how a step is computed.

    Arguments:
        step: the step, as `Recorded` takes it.
        engine: one of `ENGINES`.
        steps: the number of steps of the training.
        tolerance: the relative tolerance for compiled steps, and for steps on a GPU.
        blocked: the reason why the step cannot be recorded; empty if it can.

    Returns:
        A function with the step's arguments and results, and a function that returns a line saying, after the training,
        how the steps were computed and why.

    Example:
        >>> import torch
        >>> compute, how = chosen(lambda x: (x + 1,), "auto", steps=10)
        >>> compute(torch.zeros(1)), how()
        ((tensor([1.]),), 'eager: 10 steps are too few to gain from a recording')
    """
    if engine == "eager":
        return step, lambda: "eager, as asked"
    if blocked:
        if engine != "auto":
            warnings.warn(f"the step is not recorded and is run eagerly ({blocked})", RuntimeWarning, stacklevel=3)
        return step, lambda: f"eager: {blocked}"
    if engine == "auto" and steps < WORTHWHILE:
        count = "1 step is" if steps == 1 else f"{steps} steps are"
        return step, lambda: f"eager: {count} too few to gain from a recording"
    if engine == "auto" and (foreign := Held(step).foreign):
        fix = "if it does not, engine='recorded' saves the time that Pyro needs in each step"
        return step, lambda: f"eager: {foreign} may do something else at each step; {fix}"
    recorded = Recorded(step, compiled=engine == "compiled", quiet=engine == "auto", tolerance=tolerance)
    return recorded, lambda: str(recorded)
