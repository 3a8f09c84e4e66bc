"""How a step is computed: by running the Pyro programs, or by replaying a recording of their arithmetic."""

import warnings
from collections.abc import Callable

from pyro_vae.runtime.held import Held
from pyro_vae.runtime.recording import Recorded
from pyro_vae.runtime.steps import Step

ENGINES = ("auto", "eager", "recorded", "compiled")
WORTHWHILE = 400  # steps: a recording and its checks take as long as about 200 steps save


def chosen(
    step: Step, engine: str, steps: int, *, tolerance: float = 1e-5, unless: str = ""
) -> tuple[Step, Callable[[], str]]:
    """Return what computes a step, and what says in a line, when all is done, how that was and why.

    Arguments:
        step: what `Recorded` takes.
        engine: one of `ENGINES`.
        steps: how many there will be.
        tolerance: of what is compiled, or runs on a GPU.
        unless: words for what keeps the step from being recorded, if anything does.

    Returns:
        A function with the step's arguments and results, and one that returns the line.

    Example:
        >>> import torch
        >>> compute, how = chosen(lambda x: (x + 1,), "auto", steps=10)
        >>> compute(torch.zeros(1)), how()
        ((tensor([1.]),), 'eager: 10 steps are too few to gain from a recording')
    """
    if engine == "eager":
        return step, lambda: "eager, as asked"
    if unless:
        if engine != "auto":
            warnings.warn(f"the step is not recorded, and run eagerly ({unless})", RuntimeWarning, stacklevel=3)
        return step, lambda: f"eager: {unless}"
    if engine == "auto" and steps < WORTHWHILE:
        count = "1 step is" if steps == 1 else f"{steps} steps are"
        return step, lambda: f"eager: {count} too few to gain from a recording"
    if engine == "auto" and (foreign := Held(step).foreign):
        fix = "if it does not, engine='recorded' saves the time that Pyro takes in each step"
        return step, lambda: f"eager: {foreign} may do something else at each step; {fix}"
    recorded = Recorded(step, compiled=engine == "compiled", quiet=engine == "auto", tolerance=tolerance)
    return recorded, lambda: str(recorded)
