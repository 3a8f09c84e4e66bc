"""The programs of Pyro's own examples and tutorials, from a checkout of its repository, with our own data.

`read` runs a file's statements as they are, or a notebook's imports, functions and classes. It skips statements that
need a package which is not installed, such as one for plotting. Each function of `ORIGINALS` takes the checkout and
returns a `Case`.
"""

import ast
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_feasible
from torch.nn.functional import interpolate, one_hot, pad

from pyro_vae import data

SIZE, BATCHES = 32, 8  # a power of two, which divides without rounding
DEFINITIONS = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


class Case(NamedTuple):
    """Two programs, and the data that they are trained on."""

    make: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]]  # returns the model and the guide
    batches: list[Any]  # ready batches
    loss: ELBO = Trace_ELBO()
    total: int | None = None  # the number of data to which a plate scales the loss of a batch
    count: Callable[[Any], int] | None = None  # returns the number of data of a batch, if not its first dimension


def statements(path: Path, *assigned: str) -> Iterable[ast.stmt]:
    """Yield the statements of a file; of a notebook only definitions, and those that assign to the given names."""
    if path.suffix == ".py":
        yield from ast.parse(path.read_text()).body
        return
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            for statement in ast.parse("".join(cell["source"])).body:
                targets = [ast.unparse(target) for target in getattr(statement, "targets", [])]
                if isinstance(statement, DEFINITIONS) or any(name.split(".")[0] in assigned for name in targets):
                    yield statement


def read(folder: Path, name: str, *assigned: str) -> ModuleType:
    """Return a module with the definitions of a file or a notebook."""
    found = sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"{name} is not in {folder}")
    data.import_torchvision_datasets()
    sys.path.insert(0, str(found[0].parent))
    module = ModuleType(found[0].stem)
    sys.modules[module.__name__], module.__file__ = module, str(found[0])
    for statement in statements(found[0], *assigned):
        try:
            exec(compile(ast.Module([statement], []), str(found[0]), "exec"), vars(module))  # noqa: S102 (it is asked for)
        except (ImportError, NameError):
            continue
    return module


def pictures(side: int = 28, count: int = BATCHES * SIZE) -> torch.Tensor:
    """Return black and white digits, with the given number of pixels a side."""
    digits = data.load("digits").train[:count]
    return data.threshold(interpolate(digits, size=(side, side), mode="bilinear"))


def counts(dim: int, groups: int = 4, count: int = BATCHES * SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return counts from a few groups, each with its own rates, and the group of each datum."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(groups, dim, generator=generator).pow(3) * 5 + 0.1
    group = torch.randint(0, groups, (count,), generator=generator)
    return torch.poisson(rates[group], generator=generator), group


def rows(*parts: torch.Tensor) -> list[Any]:
    """Cut into batches."""
    return (
        list(zip(*[part.split(SIZE) for part in parts], strict=True)) if len(parts) > 1 else list(parts[0].split(SIZE))
    )


def in_turn(x: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    """Cut into batches, alternately with and without labels."""
    pairs = enumerate(rows(x, labels))
    return [(x, None if number % 2 else y) for number, (x, y) in pairs]


def programs(module: torch.nn.Module) -> tuple[Any, Any]:
    return module.model, module.guide


def vae(folder):
    module = read(folder, "vae.py")
    return Case(lambda: programs(module.VAE()), rows(pictures()))


def vae_comparison(folder):
    module = read(folder, "vae_comparison.py")
    return Case(lambda: programs(module.PyroVAEImpl(SimpleNamespace(jit=False), None, None)), rows(pictures()))


def labelled_pictures():
    return pictures().flatten(1), one_hot(data.load("digits").train_labels[: BATCHES * SIZE], 10).float()


def ss_vae(folder, enumerate_labels=True):
    module = read(folder, "ss_vae_M2.py")

    def make():
        found = module.SSVAE(hidden_layers=[500], config_enum="parallel" if enumerate_labels else None)
        guide = config_enumerate(found.guide, "parallel", expand=True) if enumerate_labels else found.guide
        return found.model, guide

    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False) if enumerate_labels else Trace_ELBO()
    return Case(make, in_turn(*labelled_pictures()), loss)


def ss_vae_auxiliary(folder):
    module = read(folder, "ss_vae_M2.py")

    def make():
        found = module.SSVAE(hidden_layers=[500], aux_loss_multiplier=46)
        return found.model_classify, found.guide_classify

    return Case(make, in_turn(*labelled_pictures()))


def cvae(folder):
    module, baseline = read(folder, "cvae.py"), read(folder, "baseline.py")
    whole = pictures().squeeze(1)
    seen = torch.zeros(28, 28, dtype=torch.bool)
    seen[:14, :14] = True  # a quadrant; -1 marks the pixels that are not given
    x, y = whole.masked_fill(~seen, -1.0), whole.masked_fill(seen, -1.0)
    return Case(lambda: programs(module.CVAE(200, 500, 500, baseline.BaselineNet(500, 500))), rows(x, y))


def dmm(folder, flows=0):
    module, generator = read(folder, "dmm.py"), torch.Generator().manual_seed(0)
    notes = torch.rand(BATCHES * SIZE, 6, 88, generator=generator) < 0.1
    lengths = torch.randint(1, 7, (BATCHES * SIZE,), generator=generator)
    lengths[::SIZE] = 6  # the padded length of every batch
    notes = notes * (torch.arange(6) < lengths[:, None])[..., None] * 1.0
    batches = [module.poly.get_mini_batch(ids, notes, lengths) for ids in torch.arange(BATCHES * SIZE).split(SIZE)]
    return Case(lambda: programs(module.DMM(num_iafs=flows, z_dim=20 if flows else 100)), batches)


def regression(folder, name):
    module, generator = read(folder, name), torch.Generator().manual_seed(0)
    total = BATCHES * SIZE
    x = torch.randn(total, generator=generator)
    y = 1 + 2 * x + 0.1 * torch.randn(total, generator=generator)

    def make():
        model = module.Model(total)
        return model, AutoNormal(model)

    return Case(make, rows(x, y), total=total)


def prodlda(folder):
    module = read(folder, "prodlda.ipynb")
    return Case(lambda: programs(module.ProdLDA(200, 20, 100, 0.2)), rows(counts(200)[0]), TraceMeanField_ELBO())


def scanvi(folder):
    module = read(folder, "scanvi.py")
    cells, kinds = counts(200)

    def make():
        scale = 1 / (SIZE * 200)
        found = module.SCANVI(num_genes=200, num_labels=4, l_loc=5.0, l_scale=1.0, scale_factor=scale)
        return found.model, config_enumerate(found.guide, "parallel", expand=True)

    loss = TraceEnum_ELBO(strict_enumeration_warning=False)
    return Case(make, in_turn(cells + 1, one_hot(kinds, 4).float()), loss)


def vae_flow_prior(folder):
    module = read(folder, "vae_flow_prior.ipynb")
    return Case(lambda: programs(module.VAE(784)), rows(pictures().flatten(1)))


def svi_flow_guide(folder, particles=16):
    def make():
        module = read(folder, "svi_flow_guide.ipynb", "prior", "flow")  # reading makes the flow
        return module.model, module.guide

    module = read(folder, "svi_flow_guide.ipynb", "prior")
    torch.manual_seed(1)
    x = module.likelihood(module.prior.sample((2 * SIZE,))).sample((5,))
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1)
    return Case(make, [x], loss, count=lambda x: x.shape[1])


def sparse_gamma_def(folder, guide="custom"):
    module = read(folder, "sparse_gamma_def.py")

    def make():
        found = module.SparseGammaDEF()
        if guide == "custom":
            return programs(found)
        if guide == "easy":
            return found.model, module.MyEasyGuide(found.model)
        return found.model, AutoDiagonalNormal(found.model, init_loc_fn=init_to_feasible)

    grey = interpolate(data.load("digits").train[:SIZE], size=(64, 64)).flatten(1)
    return Case(make, [(grey * 16).round()], TraceMeanField_ELBO())


def air(folder):
    module = read(folder, "air.py")
    nets = {name: [200] for name in ("encoder_net", "decoder_net", "predict_net", "bl_predict_net")}

    def make():
        return programs(module.AIR(3, 50, 28, 50, 256, **nets, decoder_output_bias=-2, decoder_output_use_sigmoid=True))

    small, shift = pictures(20)[:, 0], itertools.cycle([(0, 30, 0, 30), (30, 0, 30, 0), (15, 15, 15, 15)])
    x = torch.stack([pad(picture, next(shift)) for picture in small])
    x[::2] = (x[::2] + x[::2].flip(1, 2)).clamp(max=1)  # every other image has two digits
    return Case(make, [(x, SIZE)], TraceGraph_ELBO())


def lda(folder):
    module = read(folder, "lda.py")
    args = SimpleNamespace(num_topics=8, num_words=256, num_docs=256, num_words_per_doc=64, layer_sizes="100-100")
    torch.manual_seed(1)
    batch = {"data": module.model(args=args)[2], "args": args, "batch_size": SIZE}

    def make():
        return module.model, partial(module.parametrized_guide, module.make_predictor(args))

    return Case(make, [batch], TraceEnum_ELBO(max_plate_nesting=2), args.num_docs, lambda _: args.num_docs)


def eight_schools(folder):
    module = read(folder, "svi.py")
    return Case(lambda: (module.model, module.guide), [module.data])


def hmm(folder, number=1):
    module, args = read(folder, "hmm.py"), SimpleNamespace(hidden_dim=16, jit=False)
    generator = torch.Generator().manual_seed(0)
    notes = (torch.rand(SIZE, 8, 51, generator=generator) < 0.1) * 1.0
    lengths = torch.randint(2, 9, (SIZE,), generator=generator)
    lengths[0] = 8
    model = module.models[str(number)]

    def make():
        globals_ = pyro.poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_"))
        return model, AutoDelta(globals_)

    return Case(make, [{"sequences": notes, "lengths": lengths, "args": args}], TraceEnum_ELBO(max_plate_nesting=2))


def capture_recapture(folder, number=1):
    module = read(folder, "cjs.py")
    model, generator = module.models[str(number)], torch.Generator().manual_seed(0)
    seen = (torch.rand(SIZE, 5, generator=generator) < 0.5) * 1.0

    def make():
        globals_ = pyro.poutine.block(model, expose_fn=lambda site: site["name"][:3] in ("phi", "rho"))
        return model, AutoDiagonalNormal(globals_)

    return Case(make, [(seen, None)], TraceEnum_ELBO(max_plate_nesting=1))


ORIGINALS: dict[str, Callable[[Path], Case]] = {
    "vae": vae,
    "vae_comparison": vae_comparison,
    "ss_vae_M2, labels enumerated": ss_vae,
    "ss_vae_M2, labels drawn": partial(ss_vae, enumerate_labels=False),
    "ss_vae_M2, auxiliary loss": ss_vae_auxiliary,
    "cvae": cvae,
    "dmm": dmm,
    "dmm, two IAFs": partial(dmm, flows=2),
    "svi_torch": partial(regression, name="svi_torch.py"),
    "svi_lightning": partial(regression, name="svi_lightning.py"),
    "svi_horovod": partial(regression, name="svi_horovod.py"),
    "prodlda": prodlda,
    "scanvi": scanvi,
    "vae_flow_prior": vae_flow_prior,
    "svi_flow_guide": svi_flow_guide,
    "sparse_gamma_def, custom guide": sparse_gamma_def,
    "sparse_gamma_def, autoguide": partial(sparse_gamma_def, guide="auto"),
    "sparse_gamma_def, easy guide": partial(sparse_gamma_def, guide="easy"),
    "air": air,
    "lda": lda,
    "eight_schools": eight_schools,
    "hmm, model 1": hmm,
    "capture_recapture, model 1": capture_recapture,
}
