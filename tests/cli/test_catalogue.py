import pytest
from all_cases import CASES
from pyro.infer import ELBO

import pyro_vae
from pyro_vae import objectives
from pyro_vae.cli import main
from pyro_vae.runs.config import Config
from pyro_vae.runs.parts import build, build_loss, catalogue, parts


def test_every_part_and_objective_is_listed_with_a_line_and_a_reference():
    rows = catalogue()
    assert {case.family.__name__ for case in CASES} <= {name for _, name, _, _ in rows}
    for kind, name, summary, reference in rows:
        assert summary.endswith("."), (kind, name)
        assert any(year in reference for year in ("19", "20")), (kind, name)
        assert "Args" not in reference


def test_the_list_is_printed(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue())
    assert any(line.startswith("loss     IWAE ") and "Burda" in line for line in lines)
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| kind | name | what it is | reference |")


def test_every_objective_of_the_package_is_a_loss_by_name():
    classes = {value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, ELBO)}
    assert classes - {objectives.Objective} <= set(parts("loss").values())


@pytest.mark.parametrize("name", sorted(parts("loss")))
def test_every_loss_is_built_by_its_name(name):
    assert type(build_loss(Config(loss=name), 100)).__name__ == name


def test_beta_tc_knows_the_number_of_data():
    assert build_loss(Config(loss="BetaTC"), 123).size == 123


def test_one_hot_codes_reach_the_decoder_in_their_shape():
    vae = build(Config(prior="OneHotCategorical", encoder="OneHotCategorical", latent_dim=4), (1, 8, 8))
    assert vae.decoder.latent_shape == (4, 10)


def test_a_network_takes_its_sizes_by_flags_and_the_rest_by_flags_of_its_own():
    config = Config(network="GRU", decoder="Normal", options={"network": {"categories": 5}})
    vae = build(config, (7,))
    assert vae.encoder.network.recurrent.hidden_size == 128  # --hidden, for the layers of an MLP, is no size of it
    assert vae.encoder.network.embedding.num_embeddings == 5
    gated = build(Config(hidden=[6, 4], options={"network": {"gated": True}}), (1, 8, 8))
    assert (gated.encoder.network.hidden, gated.decoder.network.hidden) == ((6, 4), (4, 6))
    plain, residual = (
        build(Config(network="Conv", channels=[4, 8], options={"network": {"residual": residual}}), (1, 8, 8))
        for residual in (False, True)
    )
    assert plain.decoder.network.layers[0].out_features == 32
    assert len(list(residual.decoder.parameters())) == len(list(plain.decoder.parameters())) + 8  # two blocks


def test_a_wrapper_is_refused_with_what_it_wants():
    with pytest.raises(ValueError, match="the encoder ScoreFunction takes encoder: build it in Python"):
        build(Config(encoder="ScoreFunction"), (1, 8, 8))


def test_the_laboratory_is_at_hand():
    assert pyro_vae.gradients is pyro_vae.laboratory.gradients
