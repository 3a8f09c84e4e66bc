import torch

from pyro_vae import data


def test_every_combination_of_the_factors_has_a_picture_of_its_own():
    images, factors, names = data.sprites()
    assert images.shape == (3 * 4 * 8 * 8, 1, 16, 16)
    assert len(torch.unique(images.flatten(1), dim=0)) == len(torch.unique(factors, dim=0)) == 768
    assert names == ("shape", "scale", "x", "y")
    assert [each.bincount().tolist() for each in factors.T] == [[256] * 3, [192] * 4, [96] * 8, [96] * 8]
    assert set(images.unique().tolist()) == {0.0, 1.0}


def test_a_picture_is_what_its_factors_say():
    """By the centre and the width of the white pixels, and by their number where the radius is 2."""
    images, factors, _ = data.sprites()
    for image, (shape, scale, x, y) in zip(images[:, 0], factors.tolist(), strict=True):
        row, column = image.nonzero().T
        radius = scale + 1
        assert (column.min() + column.max(), column.max() - column.min()) == (2 * (x + 4), 2 * radius)
        assert (row.min() + row.max(), row.max() - row.min()) == (2 * (y + 4), 2 * radius)
        if radius == 2:
            assert len(row) == {0: 25, 1: 1 + 3 + 5 + 3 + 1, 2: 1 + 1 + 3 + 3 + 5}[shape]


def test_the_seed_changes_the_order_alone():
    one, same, other = data.sprites(seed=3), data.sprites(seed=3), data.sprites(seed=4)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.factors, other.factors)
    place = {tuple(each): number for number, each in enumerate(other.factors.tolist())}
    assert torch.equal(one.images, other.images[[place[tuple(each)] for each in one.factors.tolist()]])
