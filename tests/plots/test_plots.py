"""Figures against the numbers they show."""

import io
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection, LineCollection
from PIL import Image

from pyro_vae import plots
from pyro_vae.training import COLUMNS

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers():
    """Each test draws the same numbers alone as among the others."""
    RNG.bit_generator.state = START


def history(losses, test=True):
    """Rows as `fit` makes them, with columns that differ from each other."""
    rows = []
    for epoch, loss in enumerate(losses):
        tested = (loss + 1, loss - 3, 4 + epoch / 10, loss - 2) if test else (math.nan,) * 4
        rows.append(dict(zip(COLUMNS, (epoch, loss, loss - 5, 5 - epoch / 10, *tested, 1e-3, 0.5), strict=True)))
    return rows


def drawn(figure):
    """Draw a figure, and return it: some artists take their place only then."""
    plots.png(figure, dpi=figure.dpi)
    return figure


def posteriors(n, d):
    return RNG.normal(size=(n, d)) * np.linspace(1, 3, d), RNG.uniform(0.1, 2, size=(n, d))


# What history holds, the lines show


def test_curves_are_the_columns_of_the_history():
    rows = history([500.0, 110.0, 100.0, 95.0])
    figure = plots.curves(rows, title="digits")
    lines = [[line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes]
    names = [["train_loss", "test_loss", "test_loss_at_mean"], ["train_reconstruction", "test_reconstruction"]]
    names.append(["train_kl", "test_kl"])
    assert lines == [[[row[name] for row in rows] for name in panel] for panel in names]
    assert all(line.get_xdata().tolist() == [0, 1, 2, 3] for axes in figure.axes for line in axes.lines)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["train", "test", "test at the posterior mean (no bound)"]
    assert figure.get_suptitle() == "digits"


def test_curves_show_the_later_epochs_and_name_the_first():
    axes = plots.curves(history([500.0, 110.0, 100.0])).axes[0]
    low, high = axes.get_ylim()
    assert 90 < low < 98
    assert 111 < high < 120
    assert "epoch 0: train 500, test 501," in axes.get_xlabel()
    assert "498" in axes.get_xlabel()


def test_curves_without_test_data_and_with_few_epochs():
    assert [len(axes.lines) for axes in plots.curves(history([9.0, 8.0], test=False)).axes] == [1, 1, 1]
    drawn(plots.curves(history([9.0])))
    drawn(plots.curves(history([9.0, math.nan, math.inf])))
    resumed = plots.curves(history([500.0, 110.0, 100.0])[1:]).axes[0]
    assert resumed.get_xlabel() == "epoch"


# Pictures


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


def test_a_mosaic_holds_every_picture_in_its_place():
    images = RNG.uniform(size=(7, 5, 4))
    mosaic = pixels(plots.samples(images).axes[0])
    assert mosaic.shape == (15, 12)
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(mosaic[5 * row : 5 * row + 5, 4 * column : 4 * column + 4], image)
    assert (mosaic[10:, 4:] == 1).all()  # blank paper


CORNERS = {"upper left": (0, 0), "upper right": (0, 1), "lower left": (1, 0), "lower right": (1, 1)}


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4), (3, 6, 4)])
def test_pictures_are_seen_upright_on_the_screen(shape):
    # White in the upper right corner, grey in the lower left one, else black.
    image = np.zeros(shape)
    image[..., 0, -1], image[..., -1, 0] = 1.0, 0.5
    figure = plots.samples(image[None])
    seen = np.asarray(Image.open(io.BytesIO(plots.png(figure, figure.dpi))).convert("L")).astype(int)
    x0, y0, x1, y1 = figure.axes[0].get_window_extent().extents.round().astype(int)
    seen = seen[len(seen) - y1 : len(seen) - y0, x0:x1]
    at = {corner: seen[y * (len(seen) - 9) + 4, x * (seen.shape[1] - 9) + 4] for corner, (y, x) in CORNERS.items()}
    assert at == {"upper left": 0, "upper right": 255, "lower left": pytest.approx(127, abs=1), "lower right": 0}
    assert (x1 - x0) / (y1 - y0) == pytest.approx(4 / 6, rel=0.02)  # square pixels


@pytest.mark.parametrize("shape", [(2, 200), (200, 2), (3, 4, 300)])
def test_a_strip_of_a_few_rows_is_stretched_until_it_can_be_seen(shape):
    """Such as sound of two channels, whose pictures would be as thin as a line."""
    figure = drawn(plots.reconstructions(RNG.uniform(size=(10, *shape)), RNG.uniform(size=(10, *shape))))
    extent = figure.axes[0].get_window_extent()
    assert min(extent.width / 10, extent.height / 2) >= 0.2 * figure.dpi


def test_colour_keeps_its_channels():
    images = RNG.uniform(size=(4, 3, 5, 5))
    mosaic = pixels(plots.samples(torch.tensor(images, requires_grad=True)).axes[0])
    np.testing.assert_array_equal(mosaic[5:, :5], images[2].transpose(1, 2, 0))


def test_rows_of_reconstructions_and_interpolations():
    upper, lower = RNG.uniform(size=(2, 4, 1, 6, 6))
    for draw, names in (
        (plots.reconstructions, ["original", "reconstruction"]),
        (plots.interpolation, ["in latent space", "in pixel space"]),
    ):
        axes = draw(upper, lower).axes[0]
        for row, images in enumerate((upper, lower)):
            for column, image in enumerate(images):
                tile = pixels(axes)[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
                np.testing.assert_array_equal(tile, image[0])
        assert axes.get_ylim() == (2, 0)
        assert [label.get_text() for label in axes.get_yticklabels()] == names
        assert axes.get_yticks().tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("values", "shades", "caption"),
    [
        ([[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.25], [0.5, 1.0]], ""),
        ([[-1.0, 1.0], [3.0, 7.0]], [[0.0, 0.25], [0.5, 1.0]], "black is -1, white 7"),  # without a clipped value
        ([[0.0, 51.0], [102.0, 255.0]], [[0.0, 0.2], [0.4, 1.0]], "black is 0, white 255"),
        ([[-1.0, -0.5], [0.0, 0.5]], [[0.0, 0.25], [0.5, 0.75]], "black is -1, white 1"),
        ([[-np.inf, 0.5], [0.5, np.inf]], [[0.0, 0.5], [0.5, 1.0]], ""),
    ],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_pictures_outside_of_0_and_1_are_seen_and_said(values, shades, caption, colours):
    images = np.array(values)[None, None].repeat(colours, 1)
    for figure in (plots.samples(images), plots.reconstructions(images, images), plots.decoded_grid([images], [0] * 4)):
        seen = pixels(figure.axes[0]).reshape(-1, 2, 2, colours)[0]
        np.testing.assert_allclose(seen, np.array(shades)[..., None].repeat(colours, -1))
        assert figure.axes[0].get_xlabel().removeprefix("$z_1$").strip() == caption
    assert plots.posterior_cloud(images[0], np.zeros((1, 2)), images).axes[2].get_xlabel() == caption


@pytest.mark.parametrize("colours", [1, 3])
def test_missing_values_have_a_colour_of_their_own(colours):
    """Beside white pixels, and beside the blank paper after three pictures."""
    images = np.ones((3, colours, 4, 4))
    images[0, -1, 0, 0] = math.nan
    figure = plots.samples(images)
    assert figure.axes[0].get_xlabel() == "missing values are pink"
    image = figure.axes[0].images[0]
    seen = np.asarray(image.to_rgba(image.get_array(), bytes=True))[..., :3]
    pink = np.array(matplotlib.colors.to_rgb("tab:pink")) * 255
    np.testing.assert_allclose(seen[0, 0], pink, atol=1)
    seen[0, 0] = 255
    assert (seen == 255).all()
    drawn(plots.samples(np.full((1, colours, 4, 4), math.nan)))
    drawn(plots.samples(np.full((3, 4), math.nan)))


def test_compared_samples_keep_their_titles_and_their_order():
    left, right = RNG.uniform(size=(2, 9, 8, 8))
    figure = plots.compare_samples({"autoencoder": left, "VAE": right}, title="both")
    for axes, title, images in zip(figure.axes, ("autoencoder", "VAE"), (left, right), strict=True):
        assert axes.get_title() == title
        np.testing.assert_array_equal(pixels(axes)[:8, :8], images[0])


def curve_paths(axes):
    collection = next(part for part in axes.collections if isinstance(part, LineCollection))
    return [path.vertices for path in collection.get_paths()]


def test_curves_in_cells_are_one_affine_map_of_the_data():
    data = RNG.normal(size=(5, 20))
    axes = plots.samples(data).axes[0]
    paths = curve_paths(axes)[:5]
    slopes = []
    for index, (path, datum) in enumerate(zip(paths, data, strict=True)):
        row, column = divmod(index, 3)
        assert (path[:, 0] > column).all()
        assert (path[:, 0] < column + 1).all()
        assert (path[:, 1] > row).all()
        assert (path[:, 1] < row + 1).all()
        slope, offset = np.polyfit(datum, path[:, 1], 1)
        np.testing.assert_allclose(path[:, 1], slope * datum + offset, atol=1e-12)
        slopes.append(slope)
    assert max(slopes) < 0  # the y axis points down
    np.testing.assert_allclose(slopes, slopes[0])
    assert axes.get_xlabel() == f"heights from {data.min():.3g} to {data.max():.3g}"


def test_a_long_curve_is_drawn_by_its_extremes():
    data = RNG.normal(size=(2, 100_000))
    data[0, 12_345], data[1, 54_321], data[0, 777] = 99.0, -99.0, np.nan
    paths = curve_paths(plots.samples(data).axes[0])[:2]
    assert [len(path) for path in paths] == [2000, 2000]
    heights = [paths[0][:, 1], paths[1][:, 1] - (paths[1][:, 1].max() > 1)]
    assert np.isfinite(heights).all()
    top, bottom = np.argmin(heights[0]), np.argmax(heights[1])  # the y axis points down
    assert (top // 2, bottom // 2) == (123, 543)


def test_data_of_one_number_and_of_one_value_can_be_drawn():
    drawn(plots.samples(np.arange(5.0)[:, None]))
    drawn(plots.samples(np.ones((4, 10))))


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("shape", [(8, 8), (3, 30, 4), (12,)])
def test_every_count_and_shape_is_drawn(n, shape):
    images = RNG.uniform(size=(n, *shape))
    drawn(plots.samples(images))
    drawn(plots.reconstructions(images, images, "a title that is long enough to need two lines in a narrow figure"))


# A grid over the latent space


def test_decoded_grid_has_its_first_row_at_the_bottom():
    rows, columns = 4, 3
    images = RNG.uniform(size=(rows, columns, 1, 5, 5))
    axes = plots.decoded_grid(images, (-2.0, 2.0, 10.0, 16.0)).axes[0]
    mosaic, (left, right, bottom, top) = pixels(axes), axes.images[0].get_extent()
    assert axes.images[0].origin == "upper"
    for row, z2 in enumerate(np.linspace(10, 16, rows)):
        for column, z1 in enumerate(np.linspace(-2, 2, columns)):
            x = (z1 - left) / (right - left) * mosaic.shape[1]
            y = (top - z2) / (top - bottom) * mosaic.shape[0]
            tile = mosaic[round(y - 2.5) : round(y + 2.5), round(x - 2.5) : round(x + 2.5)]
            np.testing.assert_array_equal(tile, images[row, column, 0])
    assert axes.get_xlim() == (left, right) == (-3, 3)
    assert axes.get_ylim() == (bottom, top) == (9, 17)


def test_decoded_grid_of_curves_and_of_a_single_image():
    images = np.stack([np.zeros((3, 8)), np.ones((3, 8))])
    axes = plots.decoded_grid(images, (0, 2, 0, 1)).axes[0]
    heights = np.array([path[0, 1] for path in curve_paths(axes)]).reshape(2, 3)
    assert (heights[0] > 0.5).all()  # the row of ones belongs to z2 = 1 and is drawn first
    assert (heights[0] < 1.5).all()
    assert (heights[1] < 0.5).all()
    single = drawn(plots.decoded_grid(np.zeros((1, 1, 4, 4)), (1, 1, 2, 2))).axes[0]
    assert single.get_xlim() == (0.5, 1.5)


# The latent map


def ellipse_points(axes):
    """Points on the ellipses as they are drawn, in units of the axes: shape (n, 100, 2)."""
    bubbles = next(part for part in axes.collections if isinstance(part, EllipseCollection))
    angles = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angles), np.sin(angles), np.ones(100)])
    centres = bubbles.get_offset_transform().transform(bubbles.get_offsets())
    shapes = np.array([transform[:2] @ circle for transform in bubbles.get_transforms()]).swapaxes(1, 2)
    shapes = shapes @ bubbles.get_transform().get_matrix()[:2, :2].T
    return axes.transData.inverted().transform((centres[:, None] + shapes).reshape(-1, 2)).reshape(shapes.shape)


def random_covariances(n):
    factors = RNG.normal(size=(n, 2, 2))
    return factors @ factors.swapaxes(1, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_ellipses_are_one_standard_deviation_around_the_mean(shared):
    panels = {
        name: (RNG.normal(size=(50, 2)) * spread, random_covariances(50)) for name, spread in (("a", 5), ("b", 1))
    }
    figure = drawn(plots.latent_map(panels, labels=np.arange(50) % 10, shared=shared))
    for axes, (centres, covariances) in zip(figure.axes, panels.values(), strict=True):
        points = ellipse_points(axes)
        offsets = points - centres[:, None]
        distance = np.einsum("npi,nij,npj->np", offsets, np.linalg.inv(covariances), offsets)
        np.testing.assert_allclose(distance, 1, rtol=1e-6)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < points[..., 0].min()
        assert points[..., 0].max() < right
        assert bottom < points[..., 1].min()
        assert points[..., 1].max() < top
        assert right - left == pytest.approx(top - bottom)
        assert axes.get_aspect() == 1
    same = figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert same == shared


def dots(axes):
    return axes.collections[-1].get_offsets()


def test_points_without_width_are_dots():
    centres, covariances = RNG.normal(size=(6, 2)), random_covariances(6)
    covariances[2:] = 0
    axes = plots.latent_map({"": (centres, covariances)}).axes[0]
    np.testing.assert_array_equal(dots(axes), centres[2:])
    axes = plots.latent_map({"": (centres, covariances)}, ellipses=False).axes[0]
    np.testing.assert_array_equal(dots(axes), centres)


def test_labels_have_fixed_colours_and_a_legend_of_those_that_occur():
    centres, covariances = RNG.normal(size=(4, 2)), random_covariances(4)
    figure = plots.latent_map({"": (centres, covariances)}, labels=torch.tensor([9, 0, 3, 9]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "3", "9"]
    faces = figure.axes[0].collections[0].get_facecolor()
    tab10 = np.array(matplotlib.colormaps["tab10"].colors)
    np.testing.assert_allclose(faces[:, :3], tab10[[9, 0, 3, 9]])
    many = plots.latent_map({"": (np.zeros((40, 2)), np.zeros((40, 2, 2)))}, labels=np.arange(40))
    colours = [tuple(handle.get_color()) for handle in many.legends[0].legend_handles]
    assert len(set(colours)) == 40
    assert not plots.latent_map({"": (centres, covariances)}).legends


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        ([1234567, 1234568], ["1234567", "1234568"]),
        ([1.7e9 + 0.25, 1.7e9 + 0.5], ["1700000000.2", "1700000000.5"]),
        ([0.1, 1.0, np.nan], ["0.1", "1", "nan"]),
        (2019 + np.arange(51) / 1e4, ["2019", *(f"2019.00{k}" for k in range(1, 6))]),
    ],
)
def test_labels_that_differ_have_different_texts_in_the_legend(labels, texts):
    count = len(labels)
    figure = plots.latent_map({"": (np.zeros((count, 2)), np.zeros((count, 2, 2)))}, labels=labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == texts


def test_labels_that_are_text_are_named_in_the_legend():
    panels = {"": (RNG.normal(size=(4, 2)), random_covariances(4))}
    names = ["dog", "cat", "owl", "dog"]
    for labels in (names, np.array(names), np.array(names, object)):
        figure = plots.latent_map(panels, labels)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog", "owl"]
        faces, handles = figure.axes[0].collections[0].get_facecolor()[:, :3], figure.legends[0].legend_handles
        np.testing.assert_allclose(faces, [handles[index].get_color()[:3] for index in (1, 0, 2, 1)])


def test_labels_that_are_text_are_shown_as_they_are_in_one_legend_of_bounded_size():
    panels = {"": (RNG.normal(size=(4, 2)), random_covariances(4))}
    figure = drawn(plots.latent_map(panels, ["_a", "$5 to $x_", "tab\there", 100 * "z"]))
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["$5 to $x_", "_a", "tab\\there", 14 * "z" + "…" + 15 * "z"]
    assert not any(text.get_parse_math() for text in texts)
    names = np.array([f"n{k:03}" for k in range(101)])
    figure = plots.latent_map({"": (np.zeros((101, 2)), np.zeros((101, 2, 2)))}, names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"n{20 * k:03}" for k in range(6)]
    colours, shown = figure.axes[0].collections[0].get_facecolor(), figure.legends[0].legend_handles
    assert all(np.allclose(colours[20 * k, :3], shown[k].get_color()[:3]) for k in range(6))


def test_long_texts_in_a_legend_leave_room_for_the_panels():
    panels, names = {"": (RNG.normal(size=(40, 2)), random_covariances(40))}, [f"a long name of {k}" for k in range(40)]
    for labels in (names, [name + " and so on" for name in names]):
        figure = drawn(plots.latent_map(panels, labels))
        assert figure.axes[0].get_window_extent().width > 3.5 * figure.dpi
        corners = [corner for text in figure.legends[0].get_texts() for corner in text.get_window_extent().corners()]
        assert all(figure.bbox.contains(*corner) for corner in corners)


def test_labels_that_are_measurements_have_colours_by_their_size():
    values = np.append(np.linspace(1950, 2020, 99), math.nan)
    figure = drawn(plots.latent_map({"": (np.zeros((100, 2)), np.zeros((100, 2, 2)))}, labels=values))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{1950 + 14 * k}" for k in range(6)]
    faces, turbo = figure.axes[0].collections[0].get_facecolor(), matplotlib.colormaps["turbo"]
    np.testing.assert_allclose(faces[:99, :3], turbo(np.linspace(0.05, 0.95, 99))[:, :3])
    np.testing.assert_allclose(faces[99, :3], 0.7)


@pytest.mark.parametrize("covariance", [0.0, 1.0])
def test_a_single_posterior_is_drawn(covariance):
    drawn(plots.latent_map({"one": (np.ones((1, 2)), covariance * np.eye(2)[None])}, labels=[3]))


def test_two_thousand_ellipses_in_three_panels_stay_one_collection_each():
    pair = RNG.normal(size=(2000, 2)), random_covariances(2000)
    figure = drawn(plots.latent_map(dict.fromkeys("abc", pair), labels=RNG.integers(0, 10, 2000)))
    assert [len(axes.collections) for axes in figure.axes] == [2, 2, 2]


# Projections


def test_first_takes_the_first_two_dimensions():
    mean, scale = posteriors(30, 5)
    centres, covariances = plots.project(torch.tensor(mean), torch.tensor(scale))
    np.testing.assert_array_equal(centres, mean[:, :2])
    np.testing.assert_array_equal(covariances, [np.diag(row[:2] ** 2) for row in scale])


def test_pca_is_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    mean, scale = posteriors(200, 6)
    centres, covariances = plots.project(mean, scale, "pca")
    reference = PCA(2).fit(mean)
    theirs = reference.transform(mean)
    signs = np.sign((centres * theirs).sum(0))
    np.testing.assert_allclose(centres, theirs * signs, atol=1e-9)
    weight = reference.components_ * signs[:, None]
    np.testing.assert_allclose(covariances, [weight @ np.diag(row**2) @ weight.T for row in scale], atol=1e-9)


def test_pca_covariances_are_those_of_projected_samples():
    # Of m samples, an entry of the empirical covariance has the variance (s_ii s_jj + s_ij^2) / (m - 1).
    mean, scale = posteriors(4, 3)
    _, covariances = plots.project(mean, scale, "pca")
    average = mean - mean.mean(0)
    weight = np.linalg.svd(average)[2][:2]
    weight *= np.sign((plots.project(mean, scale, "pca")[0] * (average @ weight.T)).sum(0))[:, None]
    m = 100_000
    for row in range(4):
        sampled = np.cov((mean[row] + scale[row] * RNG.normal(size=(m, 3))) @ weight.T, rowvar=False)
        exact = covariances[row]
        diagonal = np.diag(exact)
        error = np.sqrt((np.outer(diagonal, diagonal) + exact**2) / (m - 1))
        assert (np.abs(sampled - exact) < 4 * error).all()


@pytest.mark.parametrize("method", ["first", "pca", "tsne"])
@pytest.mark.parametrize("k", [2, 4, 7])
def test_correlated_posteriors_are_projected_by_a_factor_of_their_covariances(method, k):
    # A diagonal factor is the standard deviations themselves; of others, a linear map takes the covariance L L^T along.
    mean, scale = posteriors(30, 4)
    np.testing.assert_allclose(
        plots.project(mean, scale[:, :, None] * np.eye(4), method)[1], plots.project(mean, scale, method)[1]
    )
    factor = RNG.normal(size=(30, 4, k))
    covariances = factor @ factor.swapaxes(1, 2)
    centres, moved = plots.project(mean, factor, method)
    if method == "tsne":  # has circles, of the scales of the dimensions one by one
        marginal = np.sqrt(covariances.diagonal(axis1=1, axis2=2))
        np.testing.assert_allclose(moved, plots.project(mean, marginal, method)[1])
        return
    weight = np.linalg.lstsq(mean - mean.mean(0), centres - centres.mean(0), rcond=None)[0].T
    np.testing.assert_allclose(moved, [weight @ covariance @ weight.T for covariance in covariances], atol=1e-9)


def test_pca_does_not_depend_on_the_axes_of_the_latent_space():
    # With one scale per datum a rotated posterior is diagonal again, so the map must come out the same, up to signs.
    mean, _ = posteriors(50, 4)
    scale = RNG.uniform(0.1, 1, size=(50, 1)) * np.ones(4)
    rotation = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    (centres, covariances), (turned, turned_covariances) = (
        plots.project(codes, scale, "pca") for codes in (mean, mean @ rotation.T + 7)
    )
    np.testing.assert_allclose(np.abs(turned), np.abs(centres), atol=1e-9)
    np.testing.assert_allclose(np.abs(turned_covariances), np.abs(covariances), atol=1e-9)


def test_pca_of_two_dimensions_keeps_every_distance():
    mean, scale = posteriors(40, 2)
    centres, covariances = plots.project(mean, scale, "pca")
    np.testing.assert_allclose(
        np.linalg.norm(centres[:, None] - centres, axis=-1), np.linalg.norm(mean[:, None] - mean, axis=-1), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(covariances), (scale**2).prod(1))
    np.testing.assert_allclose(np.trace(covariances, axis1=1, axis2=2), (scale**2).sum(1))


@pytest.mark.parametrize("method", ["first", "pca"])
def test_one_dimension_gets_a_second_one_of_0(method):
    mean, scale = posteriors(9, 1)
    centres, covariances = plots.project(mean, scale, method)
    shift = 0 if method == "first" else mean.mean()
    np.testing.assert_allclose(np.abs(centres[:, 0]), np.abs(mean[:, 0] - shift))
    assert not centres[:, 1].any()
    np.testing.assert_allclose(covariances[:, 0, 0], scale[:, 0] ** 2)
    assert not covariances[:, 1].any()
    assert not covariances[:, 0, 1].any()
    drawn(plots.latent_map({method: (centres, covariances)}))


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("method", ["first", "pca"])
def test_a_single_posterior_is_projected(method, d):
    centres, covariances = plots.project(np.ones((1, d)), np.full((1, d), 0.5), method)
    assert centres.shape == (1, 2)
    np.testing.assert_allclose(covariances[0], np.diag([0.25, 0.25 if d > 1 else 0]), atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (4, 2), (12, 1)])
def test_tsne_circles_stand_to_the_map_as_the_scales_to_the_means(n, d):
    mean, scale = posteriors(n, d)
    scale[0] = 0
    centres, covariances = plots.project(mean, scale, "tsne", seed=3)
    again, _ = plots.project(mean, scale, "tsne", seed=3)
    np.testing.assert_array_equal(centres, again)
    assert not covariances[:, 0, 1].any()
    np.testing.assert_array_equal(covariances[:, 0, 0], covariances[:, 1, 1])
    spread, spread_before = (np.sqrt(((points - points.mean(0)) ** 2).mean()) for points in (centres, mean))
    radii = np.sqrt(covariances[:, 0, 0])
    np.testing.assert_allclose(radii / spread, scale.prod(1) ** (1 / d) / spread_before, rtol=1e-6)
    assert radii[0] == 0


# Samples of one posterior


def test_posterior_cloud_shows_the_draws_and_the_first_25_of_them_decoded():
    original, decoded = RNG.uniform(size=(8, 8)), RNG.uniform(size=(100, 8, 8))
    draws, background = RNG.normal(size=(100, 2)), 5 * RNG.normal(size=(300, 2))
    figure = plots.posterior_cloud(original, draws, decoded, background, title="one")
    left, middle, right = figure.axes
    np.testing.assert_array_equal(pixels(left), original)
    np.testing.assert_array_equal(middle.collections[0].get_offsets(), background)
    np.testing.assert_array_equal(middle.collections[1].get_offsets(), draws)
    assert pixels(right).shape == (40, 40)
    np.testing.assert_array_equal(pixels(right)[32:, 32:], decoded[24])
    (low_x, high_x), (low_y, high_y) = middle.get_xlim(), middle.get_ylim()
    everything = np.concatenate([draws, background])
    assert ((everything > [low_x, low_y]) & (everything < [high_x, high_y])).all()


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8), (20,)])
def test_posterior_cloud_of_any_datum_and_without_a_background(shape):
    figure = drawn(plots.posterior_cloud(np.zeros(shape), np.zeros((1, 2)), np.zeros((1, *shape))))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["draws"]


# Numbers


def test_bars_are_the_parts_of_the_kl_in_descending_order():
    mean, variance = RNG.exponential(size=(2, 12))
    variance[3] = mean[3] = 0.001
    axes = plots.kl_per_dimension(torch.tensor(variance), torch.tensor(mean)).axes[0]
    below, above = axes.containers
    order = np.argsort(-(mean + variance))
    np.testing.assert_array_equal([bar.get_height() for bar in below], mean[order])
    np.testing.assert_array_equal([bar.get_y() for bar in above], mean[order])
    np.testing.assert_allclose([bar.get_height() for bar in above], variance[order], rtol=1e-12)
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(index + 1) for index in order]
    assert f"KL {(mean + variance).sum():.4g} nats per datum" in axes.get_title()
    assert "11 of 12 dimensions active" in axes.get_title()


def test_many_bars_keep_their_labels_apart():
    axes = plots.kl_per_dimension(np.arange(200.0), np.zeros(200)).axes[0]
    assert len(axes.get_xticks()) == 25
    assert axes.get_xticklabels()[1].get_text() == "192"  # the ninth of 200, 199, ...


def test_gradients_are_histograms_on_shared_bins():
    pathwise, score_function = RNG.normal(1, 1, size=500), RNG.normal(1, 30, size=800)
    figure = plots.gradients(pathwise, score_function)
    whole, narrow = figure.axes
    for axes in (whole, narrow):
        first, second = (patch.get_data() for patch in axes.patches)
        np.testing.assert_array_equal(first.edges, second.edges)
        for steps, draws in ((first, pathwise), (second, score_function)):
            inside = (draws >= steps.edges[0]) & (draws <= steps.edges[-1])
            assert steps.values.sum() == pytest.approx(inside.mean())
        means = [line.get_xdata()[0] for line in axes.lines]
        assert means == [pathwise.mean(), score_function.mean()]
    everything = np.concatenate([pathwise, score_function])
    assert whole.get_xlim() == (everything.min(), everything.max())
    assert narrow.get_xlim() == (pathwise.min(), pathwise.max())
    ratio = np.var(score_function, ddof=1) / np.var(pathwise, ddof=1)
    assert whole.get_title() == f"variance of the projections, score function / pathwise: {ratio:.4g}"
    legend = figure.legends[0].get_texts()[1].get_text()
    assert f"mean {score_function.mean():.3g} ±" in legend
    assert f"variance {np.var(score_function, ddof=1):.3g}" in legend


def test_gradients_without_variance():
    assert drawn(plots.gradients(np.ones(5), [1.0, 2.0])).axes[0].get_title().endswith("inf")
    drawn(plots.gradients(np.ones(5), np.ones(5)))


def test_trajectory_draws_zeros_on_a_floor_below_all_others():
    values = np.array([0, 0, 3e-8, 1e-7, 0, 2e-6])
    figure = plots.trajectory(values)
    axes = figure.axes[0]
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(line.get_ydata(), np.where(values > 0, values, 1e-9))
    assert axes.lines[1].get_xdata().tolist() == [1, 2, 5]
    assert axes.get_yscale() == "log"
    assert "3 of 6 steps" in figure.legends[0].get_texts()[0].get_text()
    assert not drawn(plots.trajectory([1e-8, 2e-8])).legends
    drawn(plots.trajectory([0.0, 0.0]))


# The house


def test_png_is_a_png_of_the_size_asked_for():
    figure = plots.samples(np.zeros((4, 8, 8)))
    data = plots.png(figure, dpi=50)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.size == tuple(round(50 * inches) for inches in figure.get_size_inches())


def test_a_vector_file_can_be_saved():
    centres, covariances = RNG.normal(size=(5, 2)), random_covariances(5)
    buffer = io.BytesIO()
    plots.latent_map({"a": (centres, covariances)}, labels=np.arange(5)).savefig(buffer, format="svg")
    assert b"<svg" in buffer.getvalue()


def test_pyplot_is_not_imported_and_the_settings_stay():
    script = """
import sys, matplotlib
before = dict(matplotlib.rcParams.copy())
import numpy as np
from pyro_vae import plots
n = np.random.default_rng(0).normal(size=(40, 2))
images = np.zeros((4, 8, 8))
for figure in (
    plots.curves([{"epoch": 0, "train_loss": 2.0}]), plots.reconstructions(images, images), plots.samples(images),
    plots.compare_samples({"a": images}), plots.interpolation(images, images),
    plots.latent_map({"a": plots.project(n, n**2, "pca")}, labels=np.arange(40)),
    plots.decoded_grid(images[None], (0, 1, 0, 1)), plots.posterior_cloud(images[0], n, images),
    plots.kl_per_dimension([1.0], [2.0]), plots.gradients(n[:, 0], n[:, 1]), plots.trajectory([0.0, 1.0]),
):
    plots.png(figure, dpi=40)
assert dict(matplotlib.rcParams.copy()) == before
print([name for name in ("matplotlib.pyplot", "sklearn") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_unusual_settings_of_a_user_do_not_turn_pictures_over():
    images = RNG.uniform(size=(1, 4, 4))
    with matplotlib.rc_context({"image.origin": "lower", "axes.grid": True, "image.interpolation": "bicubic"}):
        axes = drawn(plots.samples(images)).axes[0]
    assert axes.images[0].origin == "upper"
    assert axes.images[0].get_interpolation() == "nearest"
    assert axes.get_ylim() == (1, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_tensors_of_any_type_are_taken(dtype):
    images = (torch.rand(4, 1, 8, 8) > 0.5).to(dtype)
    np.testing.assert_array_equal(pixels(plots.samples(images).axes[0])[:8, :8], images[0, 0].double())


IMAGES, POINTS, COVARIANCES = np.zeros((4, 8, 8)), np.zeros((3, 2)), np.zeros((3, 2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.curves([]), "no rows"),
        (lambda: plots.samples(np.zeros((4, 2, 8, 8))), r"\(4, 2, 8, 8\)"),
        (lambda: plots.samples(np.zeros(8)), r"\(n, \*shape\).*\(8,\)"),
        (lambda: plots.samples(np.zeros((0, 8, 8))), "nothing to draw"),
        (lambda: plots.compare_samples({}), "no panels"),
        (lambda: plots.reconstructions(IMAGES, IMAGES[:2]), r"\(4, 8, 8\) and \(2, 8, 8\)"),
        (lambda: plots.interpolation(IMAGES, IMAGES[:2]), r"\(4, 8, 8\) and \(2, 8, 8\)"),
        (lambda: plots.latent_map({}), "no panels"),
        (lambda: plots.latent_map({"a": (np.zeros((3, 3)), COVARIANCES)}), r"centres .*\(3, 3\)"),
        (lambda: plots.latent_map({"a": (POINTS, COVARIANCES[:2])}), r"\(2, 2, 2\)"),
        (lambda: plots.latent_map({"a": (POINTS * math.nan, COVARIANCES)}), "finite"),
        (lambda: plots.latent_map({"a": (POINTS, COVARIANCES)}, labels=[1, 2]), r"one of \[3\], not \(2,\)"),
        (lambda: plots.project(POINTS, POINTS + 1, "umap"), "'first', 'pca' or 'tsne', not 'umap'"),
        (lambda: plots.project(POINTS, COVARIANCES[:2]), r"\(3, 2\) and \(2, 2, 2\)"),
        (lambda: plots.project(POINTS, POINTS - 1), "at least 0, not -1"),
        (lambda: plots.project(POINTS, POINTS, "tsne"), "at least 4"),
        (lambda: plots.project(np.ones((9, 2)), np.ones((9, 2)), "tsne"), "that differ"),
        (lambda: plots.decoded_grid(IMAGES[None], (1, 0, 0, 1)), "extent"),
        (lambda: plots.decoded_grid(IMAGES[0], (0, 1, 0, 1)), "rows, columns"),
        (lambda: plots.posterior_cloud(IMAGES[0], np.zeros((5, 3)), IMAGES), r"draws .*\(5, 3\)"),
        (lambda: plots.posterior_cloud(IMAGES[0], POINTS, IMAGES, np.zeros((5, 3))), r"background .*\(5, 3\)"),
        (lambda: plots.kl_per_dimension([1.0], [1.0, 2.0]), r"\(1,\) and \(2,\)"),
        (lambda: plots.gradients([1.0], [1.0, 2.0]), "at least 2"),
        (lambda: plots.gradients([1.0, math.nan], [1.0, 2.0]), "finite"),
        (lambda: plots.trajectory([-1.0]), "at least 0"),
        (lambda: plots.trajectory([]), "steps"),
    ],
)
def test_errors_name_what_was_received(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1, 40), (1, 40, 1)])
def test_a_single_row_or_column_is_a_curve(shape):
    waves = np.sin(np.linspace(0, 6, 40)) * RNG.uniform(0.1, 0.5, size=(4, 1))
    plain, long = plots.samples(waves), plots.samples(waves.reshape(4, *shape))
    for one, other in zip(curve_paths(plain.axes[0]), curve_paths(long.axes[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not long.axes[0].images


def test_as_file_draws_what_the_suffix_says():
    for suffix, start in ((".png", b"\x89PNG"), (".jpg", b"\xff\xd8"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        assert plots.as_file(plots.samples(np.zeros((4, 8, 8))), suffix).startswith(start)
    with pytest.raises(ValueError, match=r"not as '\.npy'"):
        plots.as_file(plots.samples(np.zeros((4, 8, 8))), ".npy")


# Posteriors


def test_gaps_are_stacked_in_the_order_of_their_sums():
    figure = plots.gaps([0.5, 0.1, 0.2], [0.5, 2.0, -0.1])
    bars = [[(bar.get_y(), bar.get_height()) for bar in container] for container in figure.axes[0].containers]
    np.testing.assert_allclose(bars[0], [(0, 0.2), (0, 0.5), (0, 0.1)])
    np.testing.assert_allclose(bars[1], [(0.2, -0.1), (0.5, 0.5), (0.1, 2.0)])
    for wrong in (([[1.0]], [[1.0]]), ([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="gaps must have one shape"):
            plots.gaps(*wrong)


def test_ranks_are_drawn_as_shares_less_what_is_expected():
    values = np.stack([np.arange(100) % 4, np.zeros(100)], 1)  # even, and all at the lowest rank
    figure = plots.ranks(values, 3, [0.1, 0.3, 0.6], [0.4, 0.7, 0.9])
    even, low = (line.get_ydata().tolist() for line in figure.axes[0].lines[:2])
    assert even == [0, 0, 0]
    assert low == [0.75, 0.5, 0.25]
    assert figure.axes[0].get_title() == "1 of 2 dimensions stay within chance (grey)"
    assert figure.legends[0].get_texts()[-1].get_text() == "outside: dimension 1"
    with pytest.raises(ValueError, match=r"low and high \(4,\), not \(100, 2\), \(3,\) and \(3,\)"):
        plots.ranks(values, 4, [0.1, 0.3, 0.6], [0.4, 0.7, 0.9])


def test_posterior_pairs_show_the_draws_of_both():
    encoder, exact = RNG.normal(size=(600, 2)), RNG.normal(size=(40, 2))
    figure = plots.posterior_pairs([(encoder, exact)] * 2, [1, 4])
    shown = [np.asarray(points.get_offsets()) for points in figure.axes[1].collections]
    np.testing.assert_array_equal(shown[0], encoder)  # at most 500 to 1,000 are drawn
    np.testing.assert_array_equal(shown[1], exact)
    assert figure.axes[1].get_ylabel() == "dimension 4"
    for wrong in ([], [(np.zeros((3, 1)), exact)]):
        with pytest.raises(ValueError, match=r"there are no posteriors|must have shape"):
            plots.posterior_pairs(wrong, [0, 1])
