import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import constraints

from pyro_vae.programs.handlers import AtMean, KLWeight, LocalModules, weigh_kl


def program():
    with pyro.plate("data", 4, subsample_size=2):
        z = pyro.sample("z", dist.Normal(3.0, 1.0))
        with poutine.scale(scale=5.0):
            w = pyro.sample("w", dist.Gamma(2.0, 4.0))
        pyro.sample("x", dist.Normal(z, w), obs=torch.zeros(2))
    return z, w


def scales(*handled):
    nodes = poutine.trace(*handled).get_trace().nodes
    return {name: nodes[name]["scale"] for name in ("z", "w", "x")}


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_kl_weight_scales_latent_sites_on_top_of_their_own_scale(beta):
    # The plate takes 2 of 4: it scales every site by 2.
    assert scales(KLWeight(beta)(program)) == {"z": 2 * beta, "w": 2 * 5 * beta, "x": 2.0}


def test_kl_weights_multiply():
    assert scales(KLWeight(3.0)(KLWeight(0.5)(program))) == {"z": 3.0, "w": 15.0, "x": 2.0}


def test_weigh_kl_weighs_every_program_and_leaves_them_alone_at_1():
    assert weigh_kl(1.0, program, scales) == (program, scales)
    weighed = weigh_kl(3.0, program, program)
    assert len(weighed) == 2
    for one in weighed:
        assert scales(one)["z"] == 6.0
    assert scales(program)["z"] == 2.0


def test_at_mean_takes_the_mean_of_latent_sites_alone():
    trace = poutine.trace(AtMean()(program)).get_trace()
    assert torch.equal(trace.nodes["z"]["value"], torch.full((2,), 3.0))
    assert torch.equal(trace.nodes["w"]["value"], torch.full((2,), 0.5))
    assert torch.equal(trace.nodes["x"]["value"], torch.zeros(2))


def test_at_mean_leaves_a_subsample_of_a_plate_to_chance():
    torch.manual_seed(0)
    picked = {tuple(poutine.trace(AtMean()(program)).get_trace().nodes["data"]["value"].tolist()) for _ in range(50)}
    assert len(picked) > 2
    assert all(set(indices) <= set(range(4)) for indices in picked)


def test_at_mean_lets_gradients_through():
    loc = torch.tensor(3.0, requires_grad=True)
    with AtMean():
        pyro.sample("z", dist.Normal(loc, 1.0)).backward()
    assert loc.grad == 1


def test_at_mean_follows_what_the_mean_depends_on():
    def chain():
        first = pyro.sample("first", dist.Normal(3.0, 1.0))
        return pyro.sample("second", dist.Normal(2 * first, 1.0))

    assert AtMean()(chain)() == 6


def same(tensors, others):
    return len(tensors) == len(others) and all(one is other for one, other in zip(tensors, others, strict=True))


def test_local_modules_collects_a_module_once_and_keeps_it_out_of_the_store():
    local, layer = LocalModules(), nn.Linear(3, 2)
    for _ in range(2):
        assert local(pyro.module)("layer", layer) is layer
    assert same(local.parameters, [layer.weight, layer.bias])
    assert not list(pyro.get_param_store().keys())


def test_local_modules_keeps_two_modules_of_one_name_apart():
    local, one, other = LocalModules(), nn.Linear(3, 2), nn.Linear(3, 2)
    before = other.weight.clone()
    local(pyro.module)("layer", one)
    local(pyro.module)("layer", other)
    assert same(local.parameters, [one.weight, one.bias, other.weight, other.bias])
    assert torch.equal(other.weight, before)


def test_local_modules_collects_a_shared_parameter_once():
    layer = nn.Linear(3, 3)
    local = LocalModules()
    local(pyro.module)("net", nn.Sequential(layer, layer))
    local(pyro.module)("other", layer)
    assert same(local.parameters, [layer.weight, layer.bias])


def test_local_modules_leaves_frozen_parameters_alone():
    local, layer = LocalModules(), nn.Linear(3, 2).eval()  # in training mode Pyro warns of them
    layer.weight.requires_grad_(False)
    local(pyro.module)("layer", layer)
    assert same(local.parameters, [layer.bias])


def test_a_modules_parameters_are_seen_by_no_handler_further_out():
    local, layer = LocalModules(), nn.Linear(3, 2)
    trace = poutine.trace(local(lambda: pyro.module("layer", layer))).get_trace()
    assert not [name for name in trace.nodes if "$$$" in name]


def test_a_param_stays_in_the_store_with_its_constraint():
    def program():
        return pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)

    local = LocalModules()
    for _ in range(3):
        assert local(program)().item() == pytest.approx(2)
    (parameter,) = local.parameters
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.item() == pytest.approx(torch.tensor(2.0).log().item())
    store = pyro.get_param_store()
    assert store["scale"].unconstrained() is parameter
    with torch.no_grad():
        parameter += 1
    assert store["scale"].item() == pytest.approx(2 * torch.tensor(1.0).exp().item())


@pytest.mark.parametrize("constraint", [constraints.real, constraints.unit_interval, constraints.simplex])
def test_a_param_is_collected_unconstrained(constraint):
    local = LocalModules()
    local(pyro.param)("p", torch.full((2,), 0.5), constraint=constraint)
    assert same(local.parameters, [pyro.get_param_store()["p"].unconstrained()])


def test_modules_and_params_are_collected_in_the_order_of_first_use():
    layer = nn.Linear(1, 1)

    def program():
        pyro.param("a", torch.tensor(1.0))
        pyro.module("layer", layer)
        pyro.param("b", torch.tensor(1.0))

    local = LocalModules()
    local(program)()
    local(program)()
    gc.collect()
    store = pyro.get_param_store()
    expected = [store["a"].unconstrained(), layer.weight, layer.bias, store["b"].unconstrained()]
    assert same(local.parameters, expected)


def test_one_local_modules_serves_two_programs():
    one, other, local = nn.Linear(1, 1), nn.Linear(1, 1), LocalModules()
    for layer in (one, other):
        local(lambda layer=layer: pyro.module("layer", layer))()
    assert same(local.parameters, [*one.parameters(), *other.parameters()])
