import os
import pickle
import re
import struct
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from data_sets import Indexed, Items, Stream
from PIL import Image
from scipy import sparse
from torch.utils.data import ChainDataset, DataLoader, TensorDataset

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, priors
from pyro_vae.data import Columns, Data, as_tensor, collated, dynamic, import_torchvision_datasets, load, threshold
from pyro_vae.data.arrays import check_counts, from_numpy
from pyro_vae.data.batches import as_rows
from pyro_vae.networks import FillMissing

MNIST_FILES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def rows(x):
    """Return a tensor's rows as a sorted list, to compare sets of data."""
    return sorted(x.flatten(1).tolist())


# Digits


def test_digits_have_their_sizes_range_and_dtype():
    digits = load("digits")
    assert digits.train.shape == (1437, 1, 8, 8)
    assert digits.test.shape == (360, 1, 8, 8)
    assert digits.train_labels.shape == (1437,)
    assert digits.test_labels.shape == (360,)
    assert digits.train.dtype == digits.test.dtype == torch.float32
    for part in (digits.train, digits.test):
        assert part.min() == 0
        assert part.max() == 1
        assert torch.equal(16 * part, (16 * part).round())


def test_digits_are_those_of_scikit_learn_each_once_with_its_label():
    from sklearn.datasets import load_digits

    source, digits = load_digits(), load("digits")
    ours = torch.cat([digits.train, digits.test]).flatten(1), torch.cat([digits.train_labels, digits.test_labels])
    labelled = torch.cat([16 * ours[0], ours[1][:, None]], 1)
    theirs = torch.tensor(np.column_stack([source.data, source.target]), dtype=torch.float32)
    assert rows(labelled) == rows(theirs)


def test_digits_are_split_always_in_the_same_way():
    first = load("digits")
    torch.manual_seed(1)
    for one, other in zip(first, load("digits"), strict=True):
        assert torch.equal(one, other)
    # Every digit is in both parts, about as often as by chance: the split follows no order of the source.
    assert (first.test_labels.bincount(minlength=10) >= 20).all()


# Files of numpy


@pytest.fixture
def x():
    return np.random.default_rng(0).random((10, 3, 4)).astype(np.float32)


def test_npy_is_split_4_to_1_always_in_the_same_way(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    loaded = load(tmp_path / "x.npy")
    assert len(loaded.train) == 8
    assert len(loaded.test) == 2
    assert loaded.train_labels is None
    assert loaded.test_labels is None
    assert rows(torch.cat([loaded.train, loaded.test])) == rows(torch.tensor(x))
    torch.manual_seed(1)
    assert torch.equal(load(str(tmp_path / "x.npy")).train, loaded.train)


@pytest.mark.parametrize(("count", "test"), [(2, 1), (3, 1), (5, 1), (7, 1), (8, 2), (100, 20)])
def test_the_test_part_is_a_fifth_and_never_empty(tmp_path, count, test):
    np.save(tmp_path / "x.npy", np.zeros((count, 2)))
    loaded = load(tmp_path / "x.npy")
    assert (len(loaded.train), len(loaded.test)) == (count - test, test)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_x_and_y_keeps_each_label_with_its_datum(tmp_path, save):
    y = np.arange(10)
    save(tmp_path / "x.npz", x=np.repeat(y[:, None] / 10, 3, 1), y=y)
    loaded = load(tmp_path / "x.npz")
    for part, labels in ((loaded.train, loaded.train_labels), (loaded.test, loaded.test_labels)):
        torch.testing.assert_close(part, (labels[:, None] / 10).expand(-1, 3).float())
    assert sorted([*loaded.train_labels.tolist(), *loaded.test_labels.tolist()]) == list(range(10))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_two_parts_is_kept_as_it_is(tmp_path, x, save):
    save(tmp_path / "x.npz", x_train=x[:7], x_test=x[7:], y_train=np.arange(7), y_test=np.arange(3))
    loaded = load(tmp_path / "x.npz")
    assert torch.equal(loaded.train, torch.tensor(x[:7]))
    assert torch.equal(loaded.test, torch.tensor(x[7:]))
    assert loaded.train_labels.tolist() == list(range(7))
    assert loaded.test_labels.tolist() == list(range(3))


def test_npz_in_two_parts_needs_no_labels(tmp_path, x):
    np.savez(tmp_path / "x.npz", x_train=x[:7], x_test=x[7:])
    assert load(tmp_path / "x.npz").train_labels is None
    assert load(tmp_path / "x.npz").test_labels is None


def test_the_single_array_of_an_npz_may_have_any_name(tmp_path, x):
    np.savez(tmp_path / "named.npz", faces=x)
    np.savez(tmp_path / "unnamed.npz", x)
    for name in ("named", "unnamed"):
        loaded = load(tmp_path / f"{name}.npz")
        assert rows(torch.cat([loaded.train, loaded.test])) == rows(torch.tensor(x))


@pytest.mark.parametrize(
    "dtype", ["u1", "f2", "f4", "f8", ">f4", ">f8", "i2", "i4", "i8", "u2", "u4", ">i2", ">u2", "?"]
)
def test_numbers_of_every_kind_become_floats_of_the_same_values(tmp_path, dtype):
    values = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
    values = values * (1 if dtype == "?" else 255)
    np.save(tmp_path / "x.npy", values.astype(dtype))
    loaded = load(tmp_path / "x.npy")
    assert loaded.train.dtype == torch.float32
    assert rows(torch.cat([loaded.train, loaded.test])) == rows(torch.tensor(values))
    scaled = load(tmp_path / "x.npy", scale=255)
    assert rows(torch.cat([scaled.train, scaled.test])) == rows(torch.tensor(values, dtype=torch.float32) / 255)


@pytest.mark.parametrize("save", [np.save, np.savez])
@pytest.mark.parametrize("kind", ["f2", "u1", "i4", "f4"])
def test_a_scale_divides_both_parts_of_a_file_whatever_its_type_and_where_it_is(tmp_path, save, kind, monkeypatch):
    values = np.random.default_rng(0).integers(0, 200, (10, 3)).astype(kind)
    path = tmp_path / f"x.np{'y' if save is np.save else 'z'}"
    save(path, values)
    parts = load(path)
    for in_memory in (2**30, 0):
        monkeypatch.setattr("pyro_vae.data.numpy_files.IN_MEMORY", in_memory)
        for eight_bit in (False, True):
            scaled = load(path, scale=7, eight_bit=eight_bit)
            for part, plain in zip(scaled[:2], parts[:2], strict=True):
                assert torch.equal(as_tensor(part), plain / 7)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "255", True])
def test_a_scale_is_a_number_above_0(tmp_path, x, scale):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="scale must be a number above 0"):
        load(tmp_path / "x.npy", scale=scale)


def test_images_take_no_scale(tmp_path):
    for source in ("digits", tmp_path):
        with pytest.raises(ValueError, match="has values in \\[0, 1\\]: leave out the scale, 255"):
            load(source, scale=255)


@pytest.mark.parametrize("swap", [False, True])
def test_parts_of_which_one_alone_has_been_scaled_are_refused(tmp_path, x, swap):
    parts = [x, (255 * x).astype(np.uint8)][:: -1 if swap else 1]
    np.savez(tmp_path / "x.npz", x_train=parts[0], x_test=parts[1])
    with pytest.raises(ValueError, match=r"x_train from 0.* to .* and x_test from 0.* to .*: bring both to one scale"):
        load(tmp_path / "x.npz")


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6)).astype("f4")
PIXELS[:, 0], PIXELS[0, 1] = 0, 255  # a black border, and white
OUTLIER = np.where(np.arange(40)[:, None] == 3, 1e6, PIXELS)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("scaled", [PIXELS / 255, PIXELS / 127.5 - 1, (PIXELS / 255 - 0.5) / 0.3, PIXELS / 16])
def test_parts_of_one_type_of_which_one_alone_has_been_scaled_are_refused(tmp_path, scaled, swap):
    for other in (PIXELS, PIXELS.astype("u1"), PIXELS.astype("i8")):
        parts = [other, scaled[:10]][:: -1 if swap else 1]
        np.savez(tmp_path / "x.npz", x_train=parts[0], x_test=parts[1])
        with pytest.raises(ValueError, match=r"x_train from .* and x_test from .*: bring both to one scale"):
            load(tmp_path / "x.npz")


def test_parts_of_which_one_has_a_sign_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=PIXELS / 255, x_test=(PIXELS / 255 - 0.1307) / 0.3081)  # as of torchvision
    with pytest.raises(ValueError, match=r"x_train from 0 to 1 and x_test from -0.4242 to 2.821: bring both to one"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (OUTLIER, PIXELS),
        (np.array([[0, 1, 1], [2, 0, 1], [0, 3, 1], [9, 0, 0]]), np.float32([[0, 1, 1]])),  # few counts are large
        (PIXELS, np.zeros((2, 6))),
        (PIXELS[:, 1:] - 99, PIXELS[:1, 1:]),
    ],
)
def test_parts_that_differ_in_few_data_are_of_one_scale(tmp_path, train, test):
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test)
    assert load(tmp_path / "x.npz").train.tolist() == train.tolist()


@pytest.mark.parametrize("kind", ["u1", "i8", "?"])
def test_zeros_and_ones_of_two_types_are_the_same_zeros_and_ones(tmp_path, kind):
    ones = np.array([[0, 1], [1, 1]])
    np.savez(tmp_path / "x.npz", x_train=ones.astype("f4"), x_test=ones.astype(kind))
    loaded = load(tmp_path / "x.npz")
    assert loaded.train.tolist() == loaded.test.tolist() == ones.tolist()


def test_arrays_in_fortran_order_are_the_same(tmp_path, x):
    np.save(tmp_path / "c.npy", x)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    assert torch.equal(load(tmp_path / "c.npy").train, load(tmp_path / "f.npy").train)


def saved(tmp_path, layout, x):
    path = tmp_path / f"x.{layout.split('-')[0]}"
    if layout == "npy":
        np.save(path, x)
    elif layout == "npz":
        np.savez(path, x=x)
    else:
        np.savez_compressed(path, x=x)
    return path


@pytest.mark.parametrize("layout", ["npy", "npz", "npz-compressed"])
def test_a_truncated_numpy_file_is_refused_wherever_it_ends(tmp_path, x, layout):
    path = saved(tmp_path, layout, x)
    whole = path.read_bytes()
    load(path)
    for end in range(0, len(whole), 16):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"x\.np[yz]"):
            load(path)


@pytest.mark.parametrize("layout", ["npy", "npz", "npz-compressed"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_damaged_numpy_file_is_refused_or_read_but_fails_in_no_other_way(tmp_path, x, layout, flip):
    path = saved(tmp_path, layout, x)
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(bytes([*whole[:index], whole[index] ^ flip, *whole[index + 1 :]]))
        try:
            load(path)
        except ValueError:
            continue


class Trap:
    """An object whose unpickling would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("layout", ["npy", "npz", "npz-compressed", "pickle"])
def test_python_objects_are_refused_without_being_unpickled(tmp_path, layout):
    trap = tmp_path / "sprung"
    if layout == "pickle":
        path = tmp_path / "x.npy"
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        path = saved(tmp_path, layout, np.array([Trap(trap), Trap(trap)], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        load(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"no file .*{name}"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["mnits", "x.csv", ""])
def test_an_unknown_name_is_refused_with_those_known(name):
    with pytest.raises(ValueError, match=r"digits, mnist, fashion-mnist, kmnist, \.npy and \.npz files, image folders"):
        load(name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": (4, 2), "b": (4, 2)}, "needs arrays x_train and x_test, or x, but holds a, b"),
        ({"x_train": (4, 2), "y_train": (4,)}, "needs arrays x_train and x_test"),
        ({"x": (4, 2), "y": (3,)}, "4 x and 3 y"),
        ({"x_train": (4, 2), "x_test": (2, 2), "y_train": (3,)}, "4 x_train and 3 y_train"),
        ({"x_train": (4, 2), "x_test": (2, 2), "y_test": (3,)}, "2 x_test and 3 y_test"),
        ({"x_train": (4, 2), "x_test": (2, 3)}, "differ in shape"),
        ({"x": (4,)}, r"\(N, ...\)"),
        ({"x": ()}, r"\(N, ...\)"),
        ({"x": (0, 2)}, "N at least 1"),
        ({"x": (1, 2)}, "at least 2 data"),
        ({"x_train": (4, 2), "x_test": (0, 2)}, "N at least 1"),
        ({}, "holds none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **{name: np.zeros(shape) for name, shape in arrays.items()})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.npz")


KINDS = {
    "complex64": "data.imag",
    "U3": "astype",
    "datetime64[s]": "data.min.*timedelta64",
    "timedelta64[s]": "data / numpy.timedelta64",
    "f4,f4": "structured_to_unstructured",
}


@pytest.mark.parametrize("dtype", KINDS)
def test_arrays_of_other_things_than_real_numbers_are_refused_with_the_way_to_make_them(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.zeros((4, 2), dtype=dtype))
    with pytest.raises(ValueError, match=f"must hold numbers, not .*; .*{KINDS[dtype]}"):
        load(tmp_path / "x.npy")
    with pytest.raises(TypeError, match=f"must hold real numbers, not .*; .*{KINDS[dtype]}"):
        as_tensor(np.load(tmp_path / "x.npy"))


# Folders of images


def write(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **kwargs)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)


def test_a_folder_of_grey_images_has_one_channel(tmp_path, pixels):
    for i, image in enumerate(pixels):
        write(tmp_path / f"{i}.png", image)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"notes\.txt is not an image and is left out"):
        loaded = load(tmp_path)
    assert loaded.train.shape == (4, 1, 6, 4)
    assert loaded.test.shape == (1, 1, 6, 4)
    assert loaded.train_labels is None
    assert rows(torch.cat([loaded.train, loaded.test])) == rows(torch.tensor(pixels) / 255)


def test_a_folder_of_colour_images_has_three_channels_first(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    for i in range(2):
        write(tmp_path / f"{i}.png", image)
    assert torch.equal(load(str(tmp_path)).train[0], torch.tensor(image.transpose(2, 0, 1)) / 255)


@pytest.mark.parametrize("value", [0, 257, 32896, 65535])
def test_grey_images_of_16_bits_keep_their_greys(tmp_path, value):
    for i in range(2):
        Image.fromarray(np.full((6, 4), value, dtype=np.uint16)).save(tmp_path / f"{i}.png")
    torch.testing.assert_close(load(tmp_path).train, torch.full((1, 1, 6, 4), value / 65535))


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "gif", "tif", "tiff", "webp", "jpg", "jpeg"])
def test_every_format_is_read(tmp_path, suffix):
    for i in range(2):
        write(tmp_path / f"{i}.{suffix}", np.full((8, 8), 51))
    # JPEG and WebP are lossy: two grey levels.
    torch.testing.assert_close(load(tmp_path).train.mean(), torch.tensor(0.2), rtol=0, atol=2 / 255)


def test_labels_that_are_measurements_keep_their_digits(tmp_path):
    times = 1.7e9 + np.arange(10) / 4  # 32 bits would round them to multiples of 128
    np.savez(tmp_path / "x.npz", x=np.zeros((10, 2)), y=times)
    loaded = load(tmp_path / "x.npz")
    assert sorted([*loaded.train_labels.tolist(), *loaded.test_labels.tolist()]) == times.tolist()


def test_labels_are_the_sub_folders_in_alphabetical_order(tmp_path):
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(4):
            write(tmp_path / name / f"{i}.png", np.full((2, 2), 10 * label + i))
    loaded = load(tmp_path)
    for part, labels in ((loaded.train, loaded.train_labels), (loaded.test, loaded.test_labels)):
        assert torch.equal((part[:, 0, 0, 0] * 255).round().long() // 10, labels)
    assert torch.cat([loaded.train_labels, loaded.test_labels]).bincount().tolist() == [4, 4, 4]
    assert loaded.label_names == ("ant", "bee", "cat")


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (2, 8)])
def test_images_of_different_sizes_are_refused_by_name(tmp_path, size):
    write(tmp_path / "a.png", np.zeros((4, 4)))
    write(tmp_path / "b.png", np.zeros(size))
    with pytest.raises(ValueError, match=r"a\.png and .*b\.png differ .*\(1, 4, 4\) and") as caught:
        load(tmp_path)
    assert str((1, *size)) in str(caught.value)


def test_grey_and_colour_together_are_refused(tmp_path):
    write(tmp_path / "a.png", np.zeros((4, 4)))
    write(tmp_path / "b.png", np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and \(3, 4, 4\)"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, beside its error
@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "jpg"])
def test_a_truncated_image_is_refused_or_read_but_fails_in_no_other_way(tmp_path, pixels, suffix):
    write(tmp_path / f"a.{suffix}", pixels[0])
    write(tmp_path / f"b.{suffix}", pixels[0])
    whole = (tmp_path / f"b.{suffix}").read_bytes()
    refused = []
    for end in range(0, len(whole), 4):
        (tmp_path / f"b.{suffix}").write_bytes(whole[:end])
        try:
            load(tmp_path)
        except ValueError as error:
            assert f"b.{suffix}" in str(error)  # noqa: PT017 (not every end is refused)
            refused.append(end)
    assert refused[: len(whole) // 16] == list(range(0, len(whole), 4))[: len(whole) // 16]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        load(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)


def test_one_image_is_not_enough(tmp_path):
    write(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="at least 2 data"):
        load(tmp_path)


# Torchvision's data sets


def idx(array):
    """Return an array of bytes in the format of the MNIST files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path):
    """A folder as torchvision has it, of 5 training and 3 test images."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = []
    for count in (5, 3):
        arrays += [generator.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8)]
    for name, array in zip(MNIST_FILES, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return tmp_path, arrays


def test_mnist_is_read_from_its_files_as_they_are(small_mnist):
    root, arrays = small_mnist
    loaded = load("mnist", root=root)
    for part, labels, images, numbers in zip(loaded[:2], loaded[2:], arrays[::2], arrays[1::2], strict=True):
        assert torch.equal(part, torch.tensor(images)[:, None] / 255)
        assert torch.equal(labels, torch.tensor(numbers).long())


def test_the_root_comes_before_the_variable_and_the_variable_before_data(small_mnist, tmp_path, monkeypatch):
    root, _ = small_mnist
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VAE_DATA", str(root))
    assert len(load("mnist").train) == 5
    with pytest.raises(ValueError, match="elsewhere"):
        load("mnist", root=tmp_path / "elsewhere")
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="empty"):
        load("mnist")
    assert len(load("mnist", root=root).train) == 5
    monkeypatch.delenv("PYRO_VAE_DATA")
    with pytest.raises(ValueError, match="under data"):
        load("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_a_missing_set_is_refused_with_the_way_to_it(tmp_path, name):
    with pytest.raises(ValueError, match=f"no {name} under .*--data-root.*PYRO_VAE_DATA.*--download"):
        load(name, root=tmp_path)


@pytest.mark.parametrize("name", MNIST_FILES)
def test_a_truncated_mnist_file_is_refused_wherever_it_ends(small_mnist, name):
    root, _ = small_mnist
    path = root / "MNIST" / "raw" / name
    whole = path.read_bytes()
    for end in [*range(min(len(whole), 20)), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="mnist under"):
            load("mnist", root=root)


@pytest.mark.parametrize(("name", "count"), [(MNIST_FILES[1], 4), (MNIST_FILES[3], 2)])
def test_mnist_with_fewer_labels_than_images_is_refused(small_mnist, name, count):
    root, _ = small_mnist
    (root / "MNIST" / "raw" / name).write_bytes(idx(np.zeros(count, dtype=np.uint8)))
    with pytest.raises(ValueError, match="mnist under"):
        load("mnist", root=root)


@pytest.fixture(scope="module")
def mnist():
    """The data set itself, where the environment says that it is."""
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:
        pytest.skip("PYRO_VAE_DATA is not set: it names the folder that holds MNIST")
    if not os.path.isdir(os.path.join(root, "MNIST", "raw")):
        pytest.skip(f"PYRO_VAE_DATA is {root}, which holds no MNIST")
    return load("mnist")


def test_mnist_has_its_sizes_and_range(mnist):
    assert mnist.train.shape == (60_000, 1, 28, 28)
    assert mnist.test.shape == (10_000, 1, 28, 28)
    assert mnist.train_labels.shape == (60_000,)
    assert mnist.test_labels.shape == (10_000,)
    assert mnist.train.min() == 0
    assert mnist.train.max() == 1


def test_mnist_has_its_published_mean_and_deviation(mnist):
    assert mnist.train.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert mnist.train.std().item() == pytest.approx(0.3081, abs=1e-4)


def test_mnist_has_its_published_label_counts(mnist):
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_torchvision_data_sets_can_be_imported_twice():
    datasets = import_torchvision_datasets()
    assert datasets.__name__ == "torchvision.datasets"
    assert {family for family in data.TORCHVISION.values() if hasattr(datasets, family)} == {
        "MNIST",
        "FashionMNIST",
        "KMNIST",
    }
    assert import_torchvision_datasets() is datasets


class BrokenTorchvision:
    """A finder for which torchvision is there, but fails on import."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 (importlib's signature)
        if name.startswith("torchvision"):
            raise RuntimeError("broken in another way")


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [BrokenTorchvision(), *sys.meta_path])
    with pytest.raises(RuntimeError, match="broken in another way"):
        import_torchvision_datasets()


# Tensors of anything


X = torch.arange(24.0).reshape(3, 2, 2, 2) / 24


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.numpy(),
        TensorDataset(X),
        TensorDataset(X, torch.arange(3)),
        Items(X),
        Items([(datum, 7) for datum in X]),
        Items([[datum, 7] for datum in X]),
        Items(list(X.numpy())),
        Indexed({number: (datum, 7) for number, datum in enumerate(X)}),  # no IndexError marks its end
        Stream(X),
        Stream([(datum, 7) for datum in X]),
        list(X),
    ],
    ids=lambda source: type(source).__name__,
)
@pytest.mark.filterwarnings("ignore:only the first of the 2 parts")
def test_as_tensor_reads_every_kind_of_data(source):
    assert torch.equal(as_tensor(source), X)


class TooLong(torch.utils.data.Dataset):
    """Data whose length is one too many, of single tensors or of two parts."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return len(X) + 1

    def __getitem__(self, index):
        return (X[index], X[index]) if self.parts else X[index]


class Groups:
    """Groups of rows by name, as pandas has them: a length, an iterator, and an index of names, not of numbers."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([("a", X), ("b", X)])

    def __getitem__(self, name):
        raise KeyError(f"Column not found: {name}")


@pytest.mark.parametrize(("source", "index"), [(TooLong(parts=False), 3), (TooLong(parts=True), 3), (Groups(), 0)])
def test_a_datum_that_a_length_promises_and_an_index_does_not_give_is_named(source, index):
    with pytest.raises(ValueError, match=rf"has a length of \d, but no datum {index} \(.*correct its __len__"):
        as_rows(source, lambda _: True)


@pytest.mark.parametrize("kind", [Items, Stream, list, lambda items: (item for item in items)])
def test_parts_of_items_that_are_left_out_are_named_once(kind):
    with pytest.warns(UserWarning, match="only the first of the 2 parts .* such as labels, is left out") as caught:
        as_tensor(kind([(datum, 7) for datum in X]))
    assert len(caught) <= 2  # a stream is counted first


@pytest.mark.parametrize(
    "source",
    [(X, X), (X.numpy(), X.numpy()), (X,), {"x": X, "y": X}, Data(X, X)],
    ids=["tensors", "arrays", "one", "dict", "Data"],
)
def test_tensors_side_by_side_are_refused_and_never_stacked(source):
    with pytest.raises(TypeError, match=rf"one tensor, but this is a \w+ of {len(source)}: give one of its parts"):
        as_tensor(source)


def test_as_tensor_reads_a_generator():
    assert torch.equal(as_tensor(datum for datum in X), X)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 1, 4, 5)])
def test_as_tensor_of_a_list_of_arrays_is_that_of_the_stacked_array(shape):
    stacked = np.random.default_rng(0).random(shape)
    assert as_tensor(list(stacked)).shape == as_tensor(stacked).shape


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.astype(">f4"), lambda a: a.T])
def test_as_tensor_reads_arrays_of_any_layout(view):
    array = view(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert as_tensor(array).tolist() == array.tolist()


@pytest.mark.skipif(np.finfo(np.longdouble).eps == np.finfo(float).eps, reason="long doubles have 64 bits here")
@pytest.mark.parametrize(
    ("times", "plus", "words"),
    [
        ("1", "1e15", "varies by 1.*, and 64 bits round it by up to"),
        ("1e400", "0", "varies by 1.00e.400, and 64 bits round it by up to inf"),
        ("1e-400", "0", "varies by 1.00e-400, and 64 bits round it by up to .*e-40"),
    ],
)
def test_numbers_of_more_than_64_bits_which_these_would_round_are_refused(times, plus, words):
    numbers = np.longdouble([[0.3], [0.7], [1.3]])
    for each in (numbers, numbers[:, 0]):
        with pytest.raises(ValueError, match=f"an entry of the data {words}.*: subtract its mean"):
            as_tensor(each * np.longdouble(times) + np.longdouble(plus))
    with_missing = np.where(numbers > 1, np.longdouble("nan"), numbers)  # which is known to 64 bits
    torch.testing.assert_close(as_tensor(with_missing)[:2], torch.tensor([[0.3], [0.7]]).double())
    assert from_numpy(np.zeros((0, 3), np.longdouble)).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", ">i2", ">u4", ">f8", "f2", "?", np.longdouble])
def test_as_tensor_reads_numbers_of_every_width(dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    for source in (array, list(array)):
        assert as_tensor(source).is_floating_point()
        assert as_tensor(source).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["U3", "complex64", object])
def test_as_tensor_refuses_arrays_of_other_things(dtype):
    with pytest.raises(TypeError, match="real numbers"):
        as_tensor(np.zeros((2, 3)).astype(dtype))


def test_as_tensor_reads_an_array_that_is_read_only():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = False
    assert as_tensor(array).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_as_tensor_keeps_the_precision(dtype):
    assert as_tensor(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_as_tensor_makes_integers_floats_as_they_are(dtype):
    x = torch.tensor([[0, 1], [1, 1]], dtype=dtype)
    assert torch.equal(as_tensor(x), x.float())
    assert as_tensor(x).dtype == torch.float32


@pytest.mark.usefixtures("float64")
def test_as_tensor_follows_the_default_dtype():
    assert as_tensor(torch.tensor([[0, 1]])).dtype == torch.float64
    assert as_tensor(torch.tensor([[0, 255]], dtype=torch.uint8)).dtype == torch.float64
    assert load("digits").train.dtype == torch.float64


@pytest.mark.parametrize("numbers", [torch.arange(256), torch.tensor([0, 1] * 128)], ids=["bytes", "zeros and ones"])
def test_as_tensor_keeps_the_values_of_8_bits(numbers):
    x = numbers.to(torch.uint8).reshape(2, 128)
    for source in (x, x.numpy(), list(x), list(x.numpy())):
        assert torch.equal(as_tensor(source), x.float())


@pytest.mark.parametrize("kind", ["u1", "i2", "i8", "f8", "?"])
def test_zeros_and_ones_have_one_bound_in_every_type(kind):
    """Of a decoder whose logits are all log 3: log(4/3) nats for a 0, log 4 for a 1."""
    ones = (np.random.default_rng(0).random((20, 6)) > 0.5).astype(kind)
    decoder = decoders.Bernoulli(2, 6, network=Constant)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoder)
    exact = (ones.sum() * np.log(4 / 3) + (1 - ones.astype(int)).sum() * np.log(4)) / len(ones)
    for x in (ones, torch.from_numpy(ones), list(ones)):
        assert evaluate(vae.model, vae.guide, x).reconstruction == pytest.approx(exact, rel=1e-5)
        row = fit(vae.model, vae.guide, x, epochs=0, batch_size=20)[0]
        assert row["train_reconstruction"] == pytest.approx(exact, rel=1e-5)


class Constant(torch.nn.Module):
    """A network without parameters whose outputs are all log 3."""

    def __init__(self, in_shape, out_shape):  # noqa: ARG002
        super().__init__()
        self.out_shape = out_shape

    def forward(self, z):
        return torch.full((*z.shape[:-1], *self.out_shape), float(np.log(3)), dtype=z.dtype)


def test_bytes_beyond_the_support_are_refused_with_the_way_to_scale_them():
    x = torch.arange(12, dtype=torch.uint8).reshape(2, 6)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Bernoulli(2, 6, grey=True))
    with pytest.raises(ValueError, match=r"hold 2, outside .* scale the data .*x / 255, or --scale 255"):
        evaluate(vae.model, vae.guide, x)
    assert evaluate(vae.model, vae.guide, data.EightBit(x)) == evaluate(vae.model, vae.guide, x / 255)


@pytest.mark.filterwarnings("ignore:only the first of the 2 parts")
def test_as_tensor_reads_images_channels_first_and_scaled():
    grey = np.random.default_rng(0).integers(0, 256, (4, 3), dtype=np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    black_and_white = np.array([[True, False, True]])
    assert torch.equal(as_tensor([Image.fromarray(grey)])[0], torch.tensor(grey)[None] / 255)
    assert torch.equal(as_tensor([Image.fromarray(colour)])[0], torch.tensor(colour.transpose(2, 0, 1)) / 255)
    assert as_tensor([Image.fromarray(black_and_white)]).tolist() == [[[[1.0, 0.0, 1.0]]]]
    assert torch.equal(as_tensor(Items([(Image.fromarray(grey), 7)]))[0], torch.tensor(grey)[None] / 255)


@pytest.mark.parametrize("source", [5, None, 2.5, object()])
def test_as_tensor_refuses_what_is_no_data(source):
    with pytest.raises(TypeError, match=f"must be a tensor, an array or a data set, not {type(source).__name__}"):
        as_tensor(source)


def test_as_tensor_refuses_complex_numbers():
    with pytest.raises(TypeError, match="real numbers"):
        as_tensor(torch.zeros(3, 2, dtype=torch.complex64))


@pytest.mark.parametrize("source", [torch.zeros(5), torch.zeros(()), torch.zeros(0, 5), [], [torch.tensor(1.0)]])
def test_as_tensor_refuses_data_without_entries_or_dimensions(source):
    with pytest.raises(ValueError, match=r"data must have shape \(N, ...\)"):
        as_tensor(source)


def test_as_tensor_refuses_data_that_differ_in_shape():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        as_tensor([torch.zeros(3), torch.zeros(2)])


# Binarization


def test_threshold_is_1_from_one_half_on():
    x = torch.tensor([0.0, 0.25, 0.5 - 2**-25, 0.5, 0.5 + 2**-24, 1.0])
    assert torch.equal(threshold(x), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    assert threshold(x.double()).dtype == torch.float64


def test_threshold_keeps_what_is_missing():
    x = torch.tensor([0.2, torch.nan, 0.7])
    assert torch.equal(threshold(x).isnan(), x.isnan())


@pytest.mark.parametrize("binarize", [threshold, dynamic])
@pytest.mark.parametrize("values", [[0.0, 255.0], [-0.1, 0.5], [0.0, float("inf")]])
def test_values_outside_of_0_and_1_are_not_binarized(binarize, values):
    with pytest.raises(ValueError, match=r"takes values in \[0, 1\], but the data hold .*--scale 255"):
        binarize(torch.tensor(values))


def test_dynamic_draws_ones_as_often_as_the_grey_value_says():
    n, grey = 100_000, torch.tensor([0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
    draws = dynamic(grey.expand(n, -1))
    assert ((draws == 0) | (draws == 1)).all()
    # 4 standard errors of 100,000 draws; 0 and 1 are certain.
    error = (grey * (1 - grey) / n).sqrt()
    assert ((draws.double().mean(0) - grey).abs() <= 4 * error + 1e-8).all()


def test_dynamic_follows_the_seed_of_torch():
    grey = torch.full((1000,), 0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dynamic(grey))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_binarizations_have_their_names():
    assert list(data.BINARIZE.items()) == [("none", None), ("threshold", threshold), ("dynamic", dynamic)]


# Images that say more than their pixels


def of_each_kind():
    """Return by name a picture that is refused, and words of the reason."""
    grey = np.random.default_rng(0).integers(0, 256, (6, 4), dtype=np.uint8)
    colour = Image.fromarray(np.dstack([grey] * 3))
    gif = colour.quantize(4)
    return {
        "cmyk.jpg": (colour.convert("CMYK"), {}, "its colours are CMYK"),
        "lab.tif": (Image.merge("LAB", [Image.fromarray(grey)] * 3), {}, "its colours are LAB"),
        "alpha.png": (Image.fromarray(np.dstack([grey] * 3 + [grey // 2])), {}, "transparent pixels"),
        "grey-alpha.png": (Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey)]), {}, "transparent"),
        "index.gif": (gif, {"transparency": int(np.asarray(gif)[0, 0])}, "transparent pixels"),
        "colour-key.png": (colour, {"transparency": tuple(map(int, np.asarray(colour)[0, 0]))}, "transparent pixels"),
        "integers.tif": (Image.fromarray(grey.astype(np.int32)), {}, "32-bit integers"),
        "signed.tif": (Image.fromarray(grey), {"tiffinfo": {339: 2}}, "its whole numbers have a sign"),
        "inverted.tif": (Image.fromarray(grey.astype(np.uint16)), {"tiffinfo": {262: 0}}, "inverted"),
        "12-bits.tif": (Image.fromarray(grey.astype(np.uint16)), {"tiffinfo": {281: 4095}}, "largest value is 4095"),
        "wide.tif": (Image.fromarray(grey.astype(np.float32)), {}, "its values go from"),
        "negative.tif": (Image.fromarray(grey.astype(np.float32) / 255 - 0.5), {}, "its values go from -"),
        "nan.tif": (Image.fromarray(np.full((6, 4), np.nan, np.float32)), {}, "all its values are NaN"),
        "animation.gif": (gif, {"save_all": True, "append_images": [gif.rotate(180)]}, "it holds 2 pictures"),
        "animation.png": (colour, {"save_all": True, "append_images": [colour.rotate(180)]}, "it holds 2 pictures"),
        "animation.webp": (colour, {"save_all": True, "append_images": [colour.rotate(180)]}, "it holds 2 pictures"),
    }


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_channel_that_is_no_colour_is_not_left_out(mode, tmp_path):
    """Such as the second one of a microscope, which Pillow does not read."""
    Image.new(mode, (4, 6)).save(tmp_path / "x.tif")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    content[content.index(struct.pack("<HHI", 338, 3, 1)) + 8] = 0  # it is not said what the sample is
    (tmp_path / "x.tif").write_bytes(content)
    reason = f"its pixels have {len(mode)} samples, of which {len(mode) - 1} would be read"
    with pytest.raises(
        ValueError, match=rf"x.tif cannot be read as an image: ({reason}|cannot identify)"
    ):  # before Pillow 10.4
        load(tmp_path)


@pytest.mark.parametrize("name", of_each_kind())
def test_a_picture_from_which_no_values_follow_is_refused_by_name(tmp_path, name):
    image, how, words = of_each_kind()[name]
    image.save(tmp_path / name, **how)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: .*{words}"):
        load(tmp_path)
    with (
        Image.open(tmp_path / name) as opened,
        pytest.raises(ValueError, match=words.replace("it holds 2", "image holds 2")),
    ):
        as_tensor([opened])


def test_floating_point_greys_keep_their_values_and_what_is_missing(tmp_path):
    values = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    values[1, 2, 3] = np.nan
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{i}.tif")
    loaded = load(tmp_path)
    found = sorted(torch.cat([loaded.train, loaded.test]).nan_to_num(-1).flatten(1).tolist())
    assert found == rows(torch.tensor(values).nan_to_num(-1))
    assert loaded.train.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_each_frame_of_a_stack_is_a_datum_with_the_label_of_its_folder(tmp_path, kind):
    largest = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[kind]
    frames = [Image.fromarray(np.full((8, 8), k / 50 * largest, kind)) for k in range(50)]
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        own = frames[25 * label : 25 * label + 25]
        own[0].save(tmp_path / name / "stack.tif", save_all=True, append_images=own[1:])
    loaded = load(tmp_path)
    x, labels = torch.cat([loaded.train, loaded.test]), torch.cat([loaded.train_labels, loaded.test_labels])
    order = x[:, 0, 0, 0].argsort()
    assert x[order, 0, 0, 0].numpy() == pytest.approx(np.arange(50) / 50, abs=1 / 255)
    assert labels[order].tolist() == [0] * 25 + [1] * 25


STORED = [("png", np.uint8), ("png", np.uint16), ("jpg", np.uint8), ("tif", np.uint8), ("tif", np.uint16)]


@pytest.mark.parametrize(("suffix", "kind"), STORED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_their_orientation_says(tmp_path, suffix, kind, orientation):
    """The tag says which transformation shows the picture upright; 6 is a quarter turn clockwise (EXIF 2.3)."""
    largest = {np.uint8: 255, np.uint16: 65535}[kind]
    stored = np.zeros((16, 24), kind)
    stored[:8, :8] = largest  # the upper left corner as it is stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": exif}
    for i in range(2):
        Image.fromarray(stored).save(tmp_path / f"{i}.{suffix}", **how)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    found = load(tmp_path).train[0, 0]
    assert found.shape == upright.shape
    assert torch.equal(found.round(), torch.tensor(upright / largest).float())


def test_palettes_are_their_colours_wherever_they_come_from(tmp_path):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4), dtype=np.uint8))
    palette = grey.quantize(256)
    for i in range(2):
        palette.save(tmp_path / f"{i}.png")
    expected = torch.tensor(np.asarray(palette.convert("RGB")) / 255).float().permute(2, 0, 1)
    assert torch.equal(as_tensor([palette])[0], expected)
    assert torch.equal(load(tmp_path).train[0], expected)
    assert as_tensor([palette]).mean() == pytest.approx(as_tensor([grey]).mean().item(), abs=0.01)


def test_opaque_transparency_is_dropped(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(np.dstack([colour, np.full((6, 4), 255, np.uint8)])).save(tmp_path / f"{i}.png")
    assert torch.equal(load(tmp_path).train[0], torch.tensor(colour.transpose(2, 0, 1)) / 255)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_transparent_grey_matters_where_it_occurs(tmp_path, kind):
    grey, most = np.arange(0, 240, 20, dtype=kind).reshape(3, 4), np.iinfo(kind).max
    for transparent in (7, 40):
        Image.fromarray(grey).save(tmp_path / f"{transparent}.png", transparency=transparent)
    with Image.open(tmp_path / "7.png") as image:
        torch.testing.assert_close(as_tensor([image])[0, 0], torch.tensor(grey / most).float())
    with Image.open(tmp_path / "40.png") as image, pytest.raises(ValueError, match="transparent pixels"):
        as_tensor([image])


# Containers


@pytest.mark.parametrize("kind", ["f4", "f8", "i4", "u1", "?"])
@pytest.mark.parametrize("form", [lambda x: x, list], ids=["array", "rows"])
def test_what_is_masked_becomes_nan(kind, form):
    values = np.array([[1, 0], [1, 1]]).astype(kind)
    found = as_tensor(form(np.ma.masked_array(values, mask=[[0, 1], [0, 0]])))
    torch.testing.assert_close(found, torch.tensor([[1, torch.nan], [1, 1]], dtype=found.dtype), equal_nan=True)
    assert found.dtype == (torch.float64 if kind == "f8" else torch.float32)
    assert as_tensor(form(np.ma.masked_array(values))).tolist() == values.tolist()


def test_a_masked_array_is_scored_where_it_is_observed():
    """Of a decoder whose logits are all log 3: log(4/3) nats for each 1 that is observed."""
    x = np.ma.masked_array(np.ones((10, 6)), mask=np.arange(60).reshape(10, 6) % 3 == 0)
    decoder = decoders.Masked(decoders.Bernoulli(2, 6, network=Constant))
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2, network=FillMissing), decoder)
    assert evaluate(vae.model, vae.guide, x).reconstruction == pytest.approx(4 * np.log(4 / 3), rel=1e-5)


@pytest.mark.parametrize("values", [[[1, 2, 3], [4, 5, 6]], [[[1.5, 2], [3, 4]], [[5, 6], [7, 8]]], [[True, False]]])
def test_nested_lists_keep_all_their_numbers(values):
    assert as_tensor(values).tolist() == np.array(values).tolist()


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list], ids=["array", "tensor", "list"])
def test_whole_numbers_that_would_be_rounded_are_refused(tmp_path, kind):
    """2^24 + 1 is the first whole number that 32 bits do not hold; 2^24 + 2 is an even one, which they do."""
    assert as_tensor(kind([[2**24, 2**24 + 2, 1]])).tolist() == [[2**24, 2**24 + 2, 1]]
    for number in (2**24 + 1, -(2**24) - 1, 2**53 + 1):
        with pytest.raises(ValueError, match=f"hold the whole number {number}, which torch.float32 would round"):
            as_tensor(kind([[number, 1]]))
    np.savez(tmp_path / "x.npz", x=[[2**24 + 1, 1], [0, 1]])
    with pytest.raises(ValueError, match="16777217"):
        load(tmp_path / "x.npz")


def test_whole_numbers_among_others_keep_their_values():
    rows = [torch.tensor([2**24 + 1, 2]), torch.tensor([0.5, 0.2])]
    with pytest.raises(ValueError, match="16777217"):
        as_tensor(rows)
    with pytest.raises(ValueError, match="9223372036854775809"):  # which would become negative
        as_tensor(np.array([[2**63 + 1, 1]], np.uint64))
    with pytest.raises(ValueError, match="hold the whole number 9223372036854775809"):
        as_tensor(torch.from_numpy(np.array([[1, 2**63 + 1]], np.uint64)))
    assert as_tensor(torch.tensor([[2**24 + 1, 1]]).double())[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    "item",
    [[(1.0, 2.0), (3.0, 4.0)], [[1.0, 2.0], (3.0, 4.0)], [Image.new("L", (2, 2)), Image.new("L", (2, 2))]],
    ids=["tuples", "a list and a tuple", "images"],
)
def test_parts_of_one_size_in_a_list_are_not_left_out(item):
    with pytest.raises(TypeError, match="a list of 2 arrays of one shape"):
        as_tensor([item, item])


def test_batches_of_a_loader_are_not_taken_for_data():
    with pytest.raises(TypeError, match="must not be a DataLoader"):
        as_tensor(iter(DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2)))


def test_a_view_of_memory_is_its_array():
    values = np.arange(6, dtype=np.uint8).reshape(3, 2)
    assert as_tensor(memoryview(values)).tolist() == values.tolist()


def test_parts_of_which_one_alone_has_been_scaled_are_refused_also_where_entries_are_missing(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=np.uint8([[0, 255]]), x_test=[[np.nan, 0.5]])
    with pytest.raises(ValueError, match="bring both to one scale"):
        load(tmp_path / "x.npz")


def test_what_would_be_left_out_of_a_file_is_refused(tmp_path):
    with open(tmp_path / "two.npy", "wb") as file:
        np.save(file, np.zeros((3, 2)))
        np.save(file, np.ones((3, 2)))
    with pytest.raises(ValueError, match="more data follow its array"):
        load(tmp_path / "two.npy")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("notes.txt", "zeros")
    with pytest.raises(ValueError, match=r"notes\.txt in it is no array"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "form", [sparse.csr_matrix, sparse.csr_array, sparse.coo_matrix, lambda x: list(map(sparse.csr_array, x))]
)
def test_sparse_matrices_become_dense(form):
    x = np.eye(3, 4)[:, None] if form.__name__ == "<lambda>" else np.eye(3, 4)
    assert as_tensor(form(x)).tolist() == x.tolist()


class Frame:
    """What pandas and polars have in common: iterating gives the names, and all of it becomes an array."""

    def __init__(self, **columns):
        self.columns, self.values = list(columns), columns

    def __iter__(self):
        return iter(self.columns)

    def __len__(self):
        return len(self.columns)

    def __getitem__(self, name):
        return self.values[name]

    def __array__(self, dtype=None, copy=None):
        return np.column_stack([np.asarray(column, dtype=object) for column in self.values.values()])


def test_a_frame_is_its_numbers_or_refused_by_its_columns():
    assert as_tensor(Frame(a=[1, 2], b=[0.5, 4])).tolist() == [[1, 0.5], [2, 4]]
    with pytest.raises(TypeError, match="the columns b, d do not: drop them"):
        as_tensor(Frame(a=[1, 2], b=["x", "y"], c=[1.0, 2.0], d=[None, 1]))
    twins = Frame(a=[1, 2])
    twins.columns, twins.values = [1, "1"], {1: [1, 2], "1": [3, 4]}
    with pytest.raises(TypeError, match="columns must differ in their names, but are 1, 1"):
        as_tensor(twins)


def test_numbers_that_numpy_does_not_have_are_refused_in_one_line():
    class Wide(Frame):
        """A frame of integers of 128 bits, for which polars raises an error of its own."""

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("cannot convert i128 to NumPy\nand more")

    with pytest.raises(TypeError, match=r"^data .* \(cannot convert i128 to NumPy\): cast them to floating-point"):
        as_tensor(Wide(a=[1, 2]))


def test_whole_numbers_that_a_frame_rounds_beside_other_columns_are_refused():
    """Frames make numbers in double precision of integers beside others: 2**60 and 2**60 + 1 become one."""

    class Joined(Frame):
        def __array__(self, dtype=None, copy=None):
            return np.column_stack(list(self.values.values())).astype(float)

    for kind in ("i8", "u8"):
        with pytest.raises(ValueError, match=r"varies by 2\.e\+00, and 64 bits round it by up to 2\.e\+00: subtract"):
            as_tensor(Joined(a=np.array([2**60, 2**60 + 1, 2**60 + 2], kind), b=np.array([0.5, 1, 2])))
    assert as_tensor(Joined(a=np.array([2**60, 0]), b=np.array([0.5, 1]))).tolist() == [[2.0**60, 0.5], [0, 1]]


class Date:
    """A type of polars, whose frames make numbers of days of dates, beside other numbers."""

    @staticmethod
    def is_temporal():
        return True


def test_dates_in_a_frame_are_not_taken_for_numbers_of_days():
    class Dated(Frame):
        dtypes = (Date, float)

        def __array__(self, dtype=None, copy=None):
            return np.array([[18262.0, 1.0], [18263.0, 2.0]])

    class Table(Frame):
        """A table of pyarrow."""

        def __array__(self, dtype=None, copy=None):
            return np.column_stack(list(self.values.values()))

    days = np.array(["2020-01-01", "2020-01-02"], "datetime64[D]")
    for kind in (Dated, Table):
        with pytest.raises(TypeError, match="the columns day do not: drop them"):
            as_tensor(kind(day=days, x=np.array([1.0, 2.0])))


REFUSED = {
    "loader": (lambda: DataLoader(TensorDataset(X), batch_size=3), "loader.dataset, and batch_size"),
    "ragged": (lambda: [[[1, 2], [3]], [[1, 2], [3]]], "nested lists must be of equal lengths"),
    "pair in a list": (lambda: [[[1.0, 2.0], 7], [[1.0, 2.0], 7]], "pairs .datum, label. be tuples"),
    "list of arrays": (lambda: [[X[0], X[1]], [X[1], X[2]]], "an item is a list of 2 arrays of one shape: stack them"),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), "give data.to_dense"),
    "nested tensor": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "not a nested one"),
    "rows in tuples": (
        lambda: [(1.0, 2.0), (3.0, 4.0)],
        "a tuple that begins with 1.0, .*: .* np.array.data, dtype=float",
    ),
    "rows with gaps": (
        lambda: [[1.0, None], [3.0, 4.0]],
        "a list that begins with 1.0, .*: .* np.array.data, dtype=float",
    ),
    "rows with names": (
        lambda: [["a", 1.0], ["b", 4.0]],
        "a list that begins with 'a', .*: .* np.array.data, dtype=float",
    ),
    "structured": (lambda: np.zeros(3, [("a", "i4"), ("b", "f8")]), "structured_to_unstructured joins its columns"),
    "texts": (lambda: np.array([["1", "2"]]), "astype.float. makes numbers of them"),
    "masked tensor": (lambda: torch.masked.masked_tensor(X, X > 0.5), "to_tensor"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of (nested|Masked)")
@pytest.mark.parametrize("name", REFUSED)
def test_other_containers_are_refused_with_the_way_to_give_them(name):
    make, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words):
        as_tensor(make())


def test_a_stream_is_of_data_and_not_of_batches():
    with pytest.raises(TypeError, match="give its data set"):
        data.Stream(DataLoader(TensorDataset(X), batch_size=3))


# What would be left out, or counted twice


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x", "mask"], "also holds mask, which would be left out: save only x, y"),
        (["x", "x_test", "y_test"], "also holds x_test, y_test,"),
        (["x_train", "x_test", "x_val"], "also holds x_val, .* save only x_train, x_test, y_train, y_test"),
        (["x_train", "x_test", "y"], "also holds y,"),
    ],
)
def test_arrays_beside_the_data_are_not_left_out(tmp_path, names, words):
    arrays = {name: np.zeros(4) if name.startswith("y") else np.zeros((4, 2)) for name in names}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "x.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("contents", "words"), [(["a", "b"], "x.npy in it is there twice"), (["ab"], "more data follow")]
)
def test_an_archive_holds_each_array_once_and_nothing_behind_it(tmp_path, contents, words):
    written = {}
    for number, name in enumerate("ab"):
        np.save(tmp_path / name, np.full((3, 2), number))
        written[name] = (tmp_path / f"{name}.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for names in contents:
            archive.writestr("x.npy", b"".join(written[name] for name in names))
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["c.heic", "c.jp2", "c.ppm", "sub/c.PGM"])
def test_images_of_other_formats_are_not_left_out(tmp_path, name):
    for path in ("a.png", "b.png", "sub/d.png"):
        write(tmp_path / path, np.zeros((2, 2)))
    (tmp_path / name).write_bytes(b"pixels")
    with pytest.raises(ValueError, match=f"{name} is an image of a format that is not read: save it as PNG"):
        load(tmp_path)


def test_images_behind_a_link_to_a_folder_are_not_left_out(tmp_path):
    for path in ("images/a.png", "images/b.png", "cats/c.png"):
        write(tmp_path / path, np.zeros((2, 2)))
    (tmp_path / "images" / "c.png").symlink_to(tmp_path / "cats" / "c.png")
    assert sum(map(len, load(tmp_path / "images")[:2])) == 3
    (tmp_path / "images" / "cats").symlink_to(tmp_path / "cats")
    with pytest.raises(ValueError, match="images/cats is a link to a folder, and is not followed"):
        load(tmp_path / "images")


def test_images_in_a_folder_that_cannot_be_searched_are_not_left_out(tmp_path, monkeypatch):
    for path in ("a.png", "b.png", "sub/c.png"):
        write(tmp_path / path, np.zeros((2, 2)))
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match="sub cannot be searched for images: Permission denied"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([".ipynb_checkpoints/a-checkpoint.png"], r"\.ipynb_checkpoints is hidden and is left out"),
        (["._a.png"], r"\._a\.png is hidden"),
        (["sub/.thumbnails/a.png"], r"sub/\.thumbnails is hidden"),
        (["__MACOSX/._a.png", "__MACOSX/._b.png"], r"2 hidden images .* are left out, such as .*MACOSX/\._a\.png"),
    ],
)
def test_hidden_copies_are_no_data_and_this_is_said(tmp_path, names, words):
    for path in ("a.png", "b.png", *names):
        write(tmp_path / ".cache" / path, np.zeros((2, 2)))
    with pytest.warns(UserWarning, match=words):
        loaded = load(tmp_path / ".cache")
    assert sum(map(len, loaded[:2])) == 2


def test_stray_files_beside_images_change_nothing(tmp_path):
    for name in (".DS_Store", "._.DS_Store", "Thumbs.db", "desktop.ini", "a.czi", "labels.csv", "._logo.svg"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    for name in ("a.jfif", "b.jpe"):  # as some browsers name JPEG files
        write(tmp_path / name, np.zeros((2, 2)), format="JPEG")
    with pytest.warns(UserWarning, match=r"4 files that are no images are left out, such as .*Thumbs\.db"):
        loaded = load(tmp_path)
    assert sum(map(len, loaded[:2])) == 2


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Val")])
def test_parts_in_folders_are_not_mixed(tmp_path, train, test):
    for name in (f"{train}/cat/a.png", f"{train}/cat/b.png", f"{test}/cat/a.png"):
        write(tmp_path / name, np.zeros((2, 2)))
    with pytest.raises(ValueError, match=f"folders named train and {test}, whose images would be mixed: name"):
        load(tmp_path)
    assert sum(map(len, load(tmp_path / train)[:2])) == 2


@pytest.mark.parametrize("kind", ["U", object])
@pytest.mark.parametrize("name", ["x", "features"])
def test_names_beside_the_data_of_a_file_are_left_out_and_this_is_said(tmp_path, kind, name):
    np.savez(tmp_path / "x.npz", **{name: np.eye(4)}, feature_names=np.array(["a", "b", "c", "d"], kind))
    with pytest.warns(UserWarning, match=r"x\.npz: feature_names hold no numbers, and are left out"):
        loaded = load(tmp_path / "x.npz")
    assert rows(torch.cat(loaded[:2])) == rows(torch.eye(4))


@pytest.mark.parametrize("name", ["x", "y"])
def test_data_and_labels_of_objects_are_refused_by_name(tmp_path, name):
    np.savez(tmp_path / "x.npz", **{"x": np.eye(2), "y": np.zeros(2)} | {name: np.array([{}, None])})
    with pytest.raises(
        ValueError, match=f"{name} in .*x.npz must hold numbers, not Python objects.* labels that are text by"
    ):
        load(tmp_path / "x.npz")


def test_labels_that_are_text_are_numbered_in_both_parts_alike(tmp_path):
    x = np.arange(4.0)[:, None]
    np.savez(tmp_path / "x.npz", X_train=x, X_test=x[:2], y_train=["dog", "cat", "emu", "cat"], y_test=["emu", "cat"])
    loaded = load(tmp_path / "x.npz")
    assert loaded.train_labels.tolist() == [1, 0, 2, 0]
    assert loaded.test_labels.tolist() == [2, 0]
    assert loaded.label_names == ("cat", "dog", "emu")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 1)), y=[b"no", b"\xff"])
    assert load(tmp_path / "x.npz").label_names == ("no", "\\xff")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 1)), y=[0, 1])
    assert load(tmp_path / "x.npz").label_names is None


def test_labels_may_stand_in_a_column(tmp_path):
    np.savez(tmp_path / "x.npz", X=np.arange(10.0)[:, None], y=np.arange(10)[:, None])
    loaded = load(tmp_path / "x.npz")
    assert torch.equal(loaded.train_labels, loaded.train[:, 0].long())


def test_names_that_differ_in_case_alone_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.eye(2), X=np.eye(3))
    with pytest.raises(ValueError, match=r"x\.npy in it is there twice"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["X.NPY", "x.Npy", "X.NPZ"])
def test_a_suffix_may_be_in_capitals(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        (np.savez if name.endswith("Z") else np.save)(file, np.arange(10).reshape(5, 2))
    loaded = load(tmp_path / name)
    assert rows(torch.cat([loaded.train, loaded.test])) == np.arange(10).reshape(5, 2).tolist()
    with pytest.raises(ValueError, match=rf"no data set or file .*; did you mean '.*{name}'"):
        load(tmp_path / name.replace("p", "pp").replace("P", "PP"))


@pytest.mark.parametrize("name", ["x.csv", "x.pt", "a.png"])
def test_a_file_that_is_not_read_is_not_called_missing(tmp_path, name):
    (tmp_path / name).write_text("a,b")
    with pytest.raises(
        ValueError, match=rf"{name} is not a file that can be read: give a \.npy or \.npz file .*, or a"
    ):
        load(tmp_path / name)


class Series:
    """What rows of pandas and polars have in common; ``dtypes`` of pandas is a single type."""

    dtypes = np.dtype(float)

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(np.arange(3.0))

    def __array__(self, dtype=None, copy=None):
        return np.arange(3.0)

    def to_frame(self):
        return Frame(a=np.asarray(self))


@pytest.mark.parametrize("data", [np.arange(3.0), torch.arange(3.0), [0.0, 1.0, 2.0], Series(), memoryview(np.ones(3))])
def test_a_row_of_numbers_is_refused_with_the_way_to_make_each_a_datum(data):
    with pytest.raises(ValueError, match=r"not \(3,\); .* makes each number a datum") as error:
        as_tensor(data)
    fix = re.search("; (.*) makes each", str(error.value))[1]
    assert as_tensor(eval(fix, {"np": np, "data": data})).tolist() == [[float(value)] for value in data]  # noqa: S307


def test_packed_numbers_of_4_bits_are_refused():
    packed = torch.zeros(3, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(TypeError, match=r"that torch can convert, not torch.float4_e2m1fn_x2: unpack them"):
        as_tensor(packed)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_a_quantized_tensor_is_refused_with_the_fix():
    data = torch.quantize_per_tensor(torch.ones(3, 2), 0.5, 0, torch.quint8)
    for give in (as_tensor, lambda x: Columns((x,))):
        with pytest.raises(TypeError, match=r"not be a quantized tensor: give data\.dequantize\(\)"):
            give(data)


class Row(Series):
    """A row of a frame of pandas, with the names of its entries."""

    def __init__(self, names):
        self.index = list(names)


@pytest.mark.parametrize("moved", [Row("bca"), Row("acb")])
def test_rows_whose_names_have_another_order_are_refused(moved):
    assert as_tensor([Row("abc"), Row("abc")]).tolist() == [[0, 1, 2]] * 2
    assert as_tensor([Row("abc"), Row("bcd")]).tolist() == [[0, 1, 2]] * 2  # such as windows of a series of times
    words = "the entry .[ab]. is not in the same place in all data: give all of them the same names in one order"
    with pytest.raises(ValueError, match=words):
        as_tensor([Row("abc"), moved])
    with pytest.raises(ValueError, match=words):
        collated([(Row("abc"), 1), (moved, 2)])
    with pytest.raises(ValueError, match=words):
        as_tensor([Frame(a=[1.0], b=[2.0]), Frame(b=[1.0], a=[2.0])])


def test_labels_beyond_64_bits_are_refused_with_the_fix():
    with pytest.raises(TypeError, match="data must hold real numbers, not object; data"):
        collated([(torch.zeros(1), 2**70), (torch.zeros(1), 1)])


def test_a_series_may_stand_beside_other_parts():
    assert Columns((np.zeros((3, 1)), Series()))[:][1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("other", [np.full((1, 2, 2), 255, "u1"), torch.rand(1, 2, 2), [[[0.0, 1.0], [1.0, 0.0]]]])
def test_images_beside_arrays_are_refused_as_their_values_have_two_scales(other):
    image = Image.new("L", (2, 2), 255)
    for items in ([image, other], [other, image, image]):
        with pytest.raises(TypeError, match="with values from 0 to 1, and the others keep their values"):
            as_tensor(items)


@pytest.mark.parametrize("form", [lambda x: x, list], ids=["array", "rows"])
@pytest.mark.parametrize(("kind", "number"), [("i8", 2**24 + 1), ("i4", -(2**24) - 1), ("u8", 2**63 + 5)])
def test_whole_numbers_beside_masked_ones_keep_their_values(form, kind, number):
    with pytest.raises(ValueError, match=str(number)):
        as_tensor(form(np.ma.masked_array(np.array([[number, 2], [3, 4]], kind), mask=[[0, 1], [0, 1]])))
    hidden = np.ma.masked_array(np.array([[number, 2], [3, 4]], kind), mask=[[1, 0], [0, 1]])
    assert as_tensor(form(hidden)).nan_to_num(-1).tolist() == [[-1, 2], [3, -1]]


@pytest.mark.parametrize("kind", [Items, Stream, list])
@pytest.mark.parametrize("parts", [(X[0], X[1]), (X[0], 7), (X[0],), {"x": X[0]}], ids=["two", "pair", "one", "dict"])
def test_a_datum_of_several_parts_is_refused_and_never_stacked(kind, parts):
    """Such as two views of an image and its label."""
    items = [(parts, 7), (parts, 8)]
    with pytest.raises(TypeError, match=rf"a datum is a {type(parts).__name__} of {len(parts)}: give each as"):
        as_tensor(kind(items))


class Counted(Stream):
    def __len__(self):
        return len(self.items)


def test_streams_are_read_with_a_length_without_one_and_in_a_chain():
    """A chain has a length that fails where a part of it has none."""
    for source in (Counted(X), ChainDataset([Stream(X[:1]), Counted(X[1:])]), ChainDataset([Counted(X)])):
        assert torch.equal(as_tensor(source), X)
        assert torch.equal(data.Stream(source)[:], X)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "lil", "dia", "dok"])
@pytest.mark.parametrize("container", ["matrix", "array"])
def test_sparse_counts_of_every_format_are_evaluated_alike(kind, container):
    counts = np.random.default_rng(0).poisson(0.5, (20, 6)).astype(np.float32)
    stored = getattr(sparse, f"{kind}_{container}")(counts)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Poisson(2, 6))
    assert evaluate(vae.model, vae.guide, stored) == evaluate(vae.model, vae.guide, torch.tensor(counts))
    assert torch.equal(data.Columns((stored, [0] * 20))[:][0], torch.tensor(counts))


@pytest.mark.parametrize(("value", "decoder"), [(3.5, "Poisson"), (-1.0, "Poisson"), (300.0, "Categorical")])
def test_counts_outside_a_support_are_not_to_be_scaled(value, decoder):
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), getattr(decoders, decoder)(2, 3))
    with pytest.raises(
        ValueError, match=rf"hold {value:g}, outside .*: give whole numbers in the support, such as raw"
    ):
        evaluate(vae.model, vae.guide, torch.full((4, 3), value))


def test_missing_pixels_stay_missing_when_the_others_are_binarized():
    x = torch.tensor([[0.0, torch.nan, 1.0]])
    for binarized in (dynamic(x), threshold(x)):
        assert torch.equal(binarized.nan_to_num(7.0), torch.tensor([[0.0, 7.0, 1.0]]))
    with pytest.raises(ValueError, match="but the data hold 0 to 3"):
        dynamic(torch.tensor([0.0, torch.nan, 3.0]))


# Precision


def times(size=50):
    """Julian days of one year, and a column of numbers of ordinary size, one of which is missing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, 2, generator=generator, dtype=torch.float64)
    x[3, 1] = torch.nan
    return x * torch.tensor([365.0, 1.0]).double() + torch.tensor([2_460_000.0, -3.0]).double()


ROUNDED = r"entry 0 of the data varies by 3\d\d, and torch.float32 rounds it by up to 0\.12\d: subtract its mean"


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: (x,), lambda x: {"x": x}])
def test_data_that_32_bits_round_by_more_than_they_tell_apart_are_warned_of(form):
    decoder = decoders.Masked(decoders.Normal(2, 2, learned=True))
    vae = VAE(priors.Normal(2), encoders.Normal(2, 2, network=FillMissing), decoder)
    with pytest.warns(UserWarning, match=ROUNDED):
        evaluate(vae.model, vae.guide, form(times()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(vae.model, vae.guide, form(times() - torch.tensor([2_460_000.0, 0.0])))
        evaluate(vae.model, vae.guide, form(torch.full((10, 2), 0.1, dtype=torch.float64)))
        vae.double()
        evaluate(vae.model, vae.guide, form(times()))


@pytest.mark.parametrize("form", ["mapped", "loader", "stream", "beside"])
def test_data_that_are_read_in_parts_are_warned_of_in_the_same_way(tmp_path, form):
    x = times()[4:]  # none of which is missing
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = data.MemoryMapped(tmp_path / "x.npy")
    forms = {"mapped": mapped, "loader": DataLoader(TensorDataset(x), batch_size=20), "stream": Stream(list(x))}
    vae = VAE(priors.Normal(2), encoders.Normal(2, 2), decoders.Normal(2, 2, learned=True))
    programs = (vae.model, vae.guide)
    if form == "beside":
        programs = (lambda x, y: vae.model(x), lambda x, y: vae.guide(x))  # noqa: ARG005
    with pytest.warns(
        UserWarning, match=r"entry 0 of the data varies by [23].*, and torch.float32 rounds it by up to 0"
    ):
        evaluate(*programs, forms.get(form, (mapped, 0 * x[:, 0])))


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_a_file_that_32_bits_round_by_more_than_they_tell_apart_is_warned_of(tmp_path, save):
    path = tmp_path / f"x.np{'y' if save is np.save else 'z'}"
    save(path, times().numpy())
    with pytest.warns(UserWarning, match=ROUNDED):
        load(path)


@pytest.mark.parametrize("size", [1e-50, 1e-42, 1e-30, 1e30, 1e300])
def test_numbers_beyond_32_bits_are_divided_by_the_scale_before_they_are_rounded(tmp_path, size):
    unit = np.random.default_rng(0).random((10, 2))
    np.save(tmp_path / "x.npy", size * unit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tmp_path / "x.npy", scale=size)
    np.testing.assert_allclose(rows(torch.cat([loaded.train, loaded.test])), sorted(unit.tolist()), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-42, 1e-50])
def test_numbers_that_32_bits_would_make_0_are_warned_of(tmp_path, size):
    x = size * torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vae = VAE(priors.Normal(2), encoders.Normal(2, 2), decoders.Normal(2, 2))
    said = "entry 0 of the data varies by .*, and torch.float32 rounds it by up to .*: divide it by its size, or take"
    with pytest.warns(UserWarning, match=said):
        evaluate(vae.model, vae.guide, x)
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.warns(UserWarning, match=said):
        load(tmp_path / "x.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(
            vae.model, vae.guide, x * torch.tensor([0.0, 1 / size], dtype=torch.float64)
        )  # nothing varies that would be lost


@pytest.mark.parametrize("kind", ["frame", "tuple", "dict"])
def test_a_validation_frame_has_its_columns_in_the_order_of_the_data(kind):
    # Silently, a column would be scored by the decoder of another one.
    wrap = {"frame": lambda x: x, "tuple": lambda x: (x, None), "dict": lambda x: {"x": x, "y": None}}[kind]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, generator=generator) + at for at in (0.0, 5.0))
    vae = VAE(priors.Normal(1), encoders.Normal(2, 1), decoders.Normal(1, 2))
    programs = (vae.model, vae.guide)
    if kind != "frame":
        programs = (lambda x, y: vae.model(x), lambda x, y: vae.guide(x))  # noqa: ARG005

    def trained(**columns):
        return fit(*programs, wrap(Frame(a=a, b=b)), validation=wrap(Frame(**columns)), epochs=0)[-1]["test_loss"]

    assert trained(a=a, b=b) == trained(c=a, d=b)  # names that the data do not have say nothing of an order
    for columns in ({"b": b, "a": a}, {"b": b, "c": a}):
        with pytest.raises(ValueError, match=r"the column '[ab]' has another place .*: give both the same columns"):
            trained(**columns)


def test_a_sparse_matrix_in_a_file_is_refused_with_the_way_to_save_it(tmp_path):
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_matrix(np.eye(5)))
    with pytest.raises(
        ValueError, match=r"a sparse matrix of scipy, .*: save scipy\.sparse\.load_npz\(path\)\.toarray"
    ):
        load(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", sparse.load_npz(tmp_path / "x.npz").toarray())
    assert len(load(tmp_path / "x.npy").train) == 4


def test_counts_that_16_bits_would_round_are_refused(tmp_path):
    vae = VAE(priors.Normal(1), encoders.Normal(2, 1), decoders.Poisson(1, 2)).bfloat16()
    held = torch.tensor([[256.0, 3.0], [258.0, torch.nan], [512.0, 0.0]])
    check_counts(held, torch.bfloat16)
    check_counts(held / 3, torch.bfloat16)  # measurements are rounded anyway
    counts = held.nan_to_num(0.0) + 1
    np.save(tmp_path / "x.npy", counts.numpy())
    in_parts = data.MemoryMapped(tmp_path / "x.npy"), DataLoader(TensorDataset(counts), batch_size=2)
    for form in (counts, counts.long(), counts.double(), *in_parts):
        with pytest.raises(ValueError, match=r"the whole number 257, which torch\.bfloat16 would round: .*vae\.float"):
            evaluate(vae.model, vae.guide, form)
