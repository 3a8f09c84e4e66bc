import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from peak_memory import WIDTH
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, priors
from pyro_vae.cli import main
from pyro_vae.data import EightBit, MemoryMapped, Stream, as_tensor, load
from pyro_vae.programs import check_programs, values
from pyro_vae.runs import recorder

MEGABYTES = 10**6


@pytest.fixture
def array(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 2, 3), np.uint8)
    np.save(tmp_path / "x.npy", x)
    return x


def growth(argument):
    """Return by how many bytes the peak of a process grows when it trains on many data."""
    script = Path(__file__).parents[1] / "support" / "peak_memory.py"
    found = subprocess.run([sys.executable, script, argument], capture_output=True, text=True, check=True, timeout=300)
    return 1024 * int(found.stdout)


@pytest.mark.slow
def test_a_file_of_150_megabytes_takes_less_than_100_of_memory(tmp_path):
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (150_000, WIDTH)).flush()  # zeros, with holes on the disk
    assert path.stat().st_size > 150 * MEGABYTES
    assert growth(str(path)) < 100 * MEGABYTES  # of the pages that a batch has touched, too


@pytest.mark.slow
def test_a_stream_of_120_megabytes_takes_less_than_60_of_memory():
    count = 30_000
    assert 4 * WIDTH * count > 120 * MEGABYTES
    assert growth(str(count)) < 60 * MEGABYTES


@pytest.mark.parametrize("kind", ["u1", "<i4", ">f8", "<f2", "?"])
def test_a_mapped_array_has_the_rows_of_a_tensor(tmp_path, kind):
    values = np.arange(60).reshape(10, 2, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(values.astype(kind)))
    mapped = MemoryMapped(tmp_path / "x.npy")
    x = as_tensor(values.astype(kind))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    assert (len(mapped), mapped.shape, mapped.dtype, mapped.device) == (10, x.shape, x.dtype, x.device)
    index = torch.tensor([7, 0, 7])
    assert torch.equal(mapped[index], x[index])
    assert torch.equal(mapped[2:5], x[2:5])
    assert torch.equal(as_tensor(mapped), x)
    assert all(torch.equal(one, other) for one, other in zip(mapped.split(4), x.split(4), strict=True))
    double = mapped.to(torch.device("meta"), torch.float64)[:1]
    assert (double.device.type, double.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: Subset(x, range(10)),
        lambda x: DataLoader(x, 5),
        lambda x: ConcatDataset([x, x]),
        lambda x: x,
        lambda x: (x,),
        as_tensor,
    ],
)
@pytest.mark.parametrize("values", [np.eye(10, 3) * 1e-50, 1.7e9 + np.eye(10, 3)])
def test_what_32_bits_lose_of_a_mapped_array_is_said_as_of_one_in_memory(tmp_path, values, form):
    """Values below 1e-45, which become 0, and times in seconds."""
    np.save(tmp_path / "x.npy", values)
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
    with pytest.warns(UserWarning, match=r"entry 0 of the data varies by \S+, and torch.float32 rounds it"):
        evaluate(vae.model, vae.guide, form(MemoryMapped(tmp_path / "x.npy")))


def test_a_mapped_array_of_64_bits_keeps_them_without_a_module(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(10, 3) * 1e-50)
    assert MemoryMapped(tmp_path / "x.npy")[:1].tolist() == [[1e-50, 0, 0]]


def test_no_rows_of_a_mapped_array_are_an_empty_batch(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 3)))
    none = MemoryMapped(tmp_path / "x.npy")[torch.tensor([], dtype=torch.long)]
    assert (none.shape, none.dtype) == ((0, 2, 3), torch.float64)


def shrink(path):
    os.truncate(path, path.stat().st_size - 1)


def replace(path):
    np.save(path.with_name("other.npy"), np.ones((10, 2, 3)))
    path.with_name("other.npy").rename(path)


def overwrite(path):
    np.save(path, np.load(path) + 1)
    os.utime(path, (0, 0))  # a clock too coarse to tell two moments apart would make this test fail by chance


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("change", [shrink, replace, overwrite, Path.unlink])
def test_a_file_that_changes_while_it_is_mapped_is_an_error(tmp_path, order, change):
    path = tmp_path / "x.npy"
    np.save(path, np.asarray(np.zeros((10, 2, 3)), order=order))
    mapped = MemoryMapped(path)
    assert mapped[:1].shape == (1, 2, 3)
    change(path)
    with pytest.raises(OSError, match=r"x\.npy has changed while it was in use: restore it|No such file.*x\.npy"):
        mapped[torch.tensor([9])]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_shrinks_between_its_look_and_its_read_is_an_error(tmp_path, monkeypatch, order):
    """A read through a memory map would end the process by SIGBUS."""
    path = tmp_path / "x.npy"
    np.save(path, np.asarray(np.zeros((10_000, 3)), order=order))
    mapped = MemoryMapped(path)
    read = data.rows._read_at

    def shrink_first(file, start, size):
        os.truncate(path, 200)
        return read(file, start, size)

    monkeypatch.setattr(data.rows, "_read_at", shrink_first)
    with pytest.raises(OSError, match="has changed while it was in use"):
        mapped[torch.tensor([9_999])]


def test_a_training_whose_file_shrinks_ends_in_one_line(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "x.npy", tmp_path / "run"
    np.save(path, np.zeros((40, 3), np.uint8))
    monkeypatch.setattr("pyro_vae.data.numpy_files.IN_MEMORY", 0)
    append = recorder.append_metrics

    def shrink_after_the_first_epoch(metrics, row):
        append(metrics, row)
        if row["epoch"] == 1:
            shrink(path)

    monkeypatch.setattr(recorder, "append_metrics", shrink_after_the_first_epoch)
    flags = ["--hidden=4", "--latent-dim=2", "--epochs=3", "--batch-size=7", f"--data={path}", f"--out={out}"]
    assert main(["train", *flags]) == 2
    said = capsys.readouterr().err
    assert f"{path} has changed while it was in use" in said
    assert f"pyro-vae train --resume {out}" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_eight_bits_have_the_rows_of_a_tensor(tmp_path, array):
    values = torch.from_numpy(array)
    rows, x = EightBit(values), as_tensor(array) / 255
    assert (len(rows), rows.shape, rows.dtype, rows.device) == (50, x.shape, x.dtype, x.device)
    index = torch.tensor([7, 0, 7])
    assert torch.equal(rows[index], x[index])
    assert torch.equal(rows[2:5], x[2:5])
    assert torch.equal(as_tensor(rows), x)
    assert all(torch.equal(one, other) for one, other in zip(rows.split(4), x.split(4), strict=True))
    moved = rows.to(torch.device("meta"), torch.float64)
    assert (moved[:1].device.type, moved[:1].dtype, moved.values.dtype) == ("meta", torch.float64, torch.uint8)
    for scale in (None, 255):
        plain, kept = (load(tmp_path / "x.npy", eight_bit=eight_bit, scale=scale) for eight_bit in (False, True))
        assert torch.equal(kept.train.values, (plain.train * (scale or 1)).round().to(torch.uint8))
        assert torch.equal(kept.test[:], plain.test)


@pytest.mark.parametrize("wrong", [torch.rand(3, 2), torch.zeros(3, dtype=torch.uint8), [[1, 2]]])
def test_eight_bits_are_eight_bits(wrong):
    with pytest.raises((TypeError, ValueError), match=r"uint8|shape"):
        EightBit(wrong)


FORMS = {"tensor": torch.from_numpy, "array": np.asarray, "EightBit": lambda x: EightBit(torch.from_numpy(x))}


@pytest.mark.parametrize("form", FORMS)
def test_training_on_eight_bits_is_training_on_32_to_the_last_bit(array, form):
    losses = []
    decoder = decoders.Bernoulli if form == "EightBit" else decoders.Poisson
    scale = 255 if form == "EightBit" else 1
    for x in (FORMS[form](array), as_tensor(array) / scale):
        torch.manual_seed(0)
        grey = {"grey": True} if form == "EightBit" else {}
        vae = VAE(priors.Normal(2), encoders.Normal((2, 3), 2), decoder(2, (2, 3), **grey))
        history = fit(vae.model, vae.guide, x, validation=x, epochs=2, batch_size=8)
        losses.append([history.column("train_loss"), history.column("test_loss")])
    assert losses[0] == losses[1]


def test_a_large_file_stays_on_disk_in_the_parts_of_a_small_one(tmp_path, array, monkeypatch):
    small = load(tmp_path / "x.npy")
    monkeypatch.setattr("pyro_vae.data.numpy_files.IN_MEMORY", 4 * array.size - 1)
    large = load(tmp_path / "x.npy")
    assert isinstance(small.train, torch.Tensor)
    assert isinstance(large.train, MemoryMapped)
    assert isinstance(large.test, MemoryMapped)
    assert torch.equal(large.train[:], small.train)
    assert torch.equal(large.test[:], small.test)


def test_training_on_a_mapped_file_is_training_on_its_array_to_the_last_bit():
    mapped, in_memory = (ranks.train(None, 51, form=form) for form in (ranks.in_a_file, torch.clone))
    assert torch.equal(mapped["losses"], in_memory["losses"])
    assert torch.equal(mapped["parameters"][0], in_memory["parameters"][0])


@pytest.mark.slow
@pytest.mark.usefixtures("array")
def test_a_run_from_a_large_file_is_that_from_a_small_one(tmp_path, monkeypatch):
    flags = [
        "--hidden=4",
        "--latent-dim=2",
        "--epochs=2",
        "--batch-size=7",
        f"--data={tmp_path / 'x.npy'}",
        "--scale=255",
    ]
    assert main(["train", *flags, f"--out={tmp_path / 'small'}"]) == 0
    monkeypatch.setattr("pyro_vae.data.numpy_files.IN_MEMORY", 0)
    assert main(["train", *flags, f"--out={tmp_path / 'large'}"]) == 0
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("small", "large")]
    without_seconds = [[line.rpartition(",")[0] for line in lines] for lines in rows]
    assert without_seconds[0] == without_seconds[1]
    assert main(["reconstruct", str(tmp_path / "large")]) == 0
    assert (
        main(["compare", *flags[:2], *flags[4:], "--steps=1", "--draws=2", "--rounds=1", f"--out={tmp_path / 'c'}"])
        == 0
    )


def test_a_stream_keeps_its_order_and_takes_the_parameters_where_its_data_do():
    """In whole batches the order is of no account: the steps are those of a tensor."""
    stream, tensor = (ranks.train(None, 16, form=form) for form in (ranks.InAStream, torch.clone))
    torch.testing.assert_close(stream["parameters"], tensor["parameters"], rtol=0, atol=1e-6)
    x = torch.randn(5, 3)
    batches = [list(data.shuffled_batches(Stream(ranks.InAStream(x)), 2, torch.Generator())) for _ in range(2)]
    assert [len(batch) for batch in batches[0]] == [2, 2, 1]
    assert all(torch.equal(torch.cat(epoch), x) for epoch in batches)


class Pairs(IterableDataset):
    """Labelled rows of 8 bits, of a known number."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(torch.full((2,), 51 * i, dtype=torch.uint8), i) for i in range(3)])


@pytest.mark.parametrize(
    "rows",
    [[-1], [3], [True, False, True], [0.0, 1.0], [[0, 1]], []],
    ids=["negative", "beyond", "mask", "floating", "two dimensions", "none"],
)
def test_rows_that_a_file_does_not_have_are_refused(tmp_path, rows):
    """Row -1 would be read from the file's head."""
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match=r"rows must be whole numbers from 0 to 2, shape \(n,\)"):
        MemoryMapped(tmp_path / "x.npy", torch.tensor(rows))


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.uint8])
def test_rows_are_found_whatever_the_type_of_their_numbers(tmp_path, kind):
    """The place of row 100 in the file is beyond what 8 bits hold."""
    values = np.arange(6000.0).reshape(600, 10)
    np.save(tmp_path / "x.npy", values)
    assert MemoryMapped(tmp_path / "x.npy", torch.tensor([100, 3], dtype=kind))[:].tolist() == values[[100, 3]].tolist()


def test_a_stream_of_labelled_8_bit_values_keeps_the_values():
    with pytest.warns(UserWarning, match="only the first of the 2 parts"):
        stream = Stream(Pairs())
    assert stream.shape == (3, 2)
    with pytest.warns(UserWarning, match="only the first of the 2 parts"):
        assert stream[:].tolist() == [[0.0, 0.0], [51.0, 51.0], [102.0, 102.0]]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (iter([torch.zeros(2), torch.zeros(2)]), "gave 0 data in this pass, not 2|N at least 1"),
        ([torch.zeros(2), torch.zeros(3)], "the data differ in shape"),
        ([], "N at least 1"),
    ],
)
def test_a_stream_that_does_not_hold_is_refused(items, words):
    with pytest.raises(ValueError, match=words):
        list(Stream(items).split(1))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(()), r"must have shape \(N, \.\.\.\)"),
        (np.zeros((0, 2)), "N at least 1"),
        (np.array([["a"]]), "real numbers"),
        (np.array([[{}]]), "cannot be read as a .npy file"),
    ],
)
def test_a_file_that_holds_no_data_is_refused(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises((TypeError, ValueError), match=words):
        MemoryMapped(tmp_path / "x.npy")


@pytest.mark.parametrize(("value", "row"), [(np.inf, 7), (np.nan, 7), (-1.0, 7), (np.inf, 0)])
def test_data_are_checked_to_the_last_chunk_and_named_by_their_place(tmp_path, monkeypatch, value, row):
    from pyro_vae import VAE, decoders, encoders, priors

    x = np.zeros((8, 3), np.float32)
    x[row, 1] = value
    np.save(tmp_path / "x.npy", x)
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Bernoulli(2, 3))
    monkeypatch.setattr(values, "LARGEST_CHUNK", 9)  # three data
    words = f"hold {value:g}, outside" if np.isfinite(value) else re.escape(f"hold {value} at index ({row}, 1)")
    for rows in (MemoryMapped(tmp_path / "x.npy"), torch.tensor(x), Stream(torch.tensor(x))):
        with pytest.raises(ValueError, match=words):
            check_programs(vae.model, vae.guide, rows)


@pytest.mark.parametrize("row", [0, 2, 3, 7])
def test_a_fingerprint_sees_every_value_of_a_small_part_and_the_ends_of_a_large_one(tmp_path, row, monkeypatch):
    x = np.zeros((8, 3), np.float32)
    np.save(tmp_path / "one.npy", x)
    x[row, 1] = 1e-6
    np.save(tmp_path / "other.npy", x)
    for largest, seen in ((2**26, True), (2 * 12, row in (0, 7))):
        monkeypatch.setattr("pyro_vae.data.fingerprints.HASHED", largest)
        mapped = [data.Data(MemoryMapped(tmp_path / f"{name}.npy"), torch.ones(1, 3)) for name in ("one", "other")]
        assert (data.fingerprint(mapped[0]) != data.fingerprint(mapped[1])) is seen
        in_memory = [data.Data(part.train[:], part.test) for part in mapped]
        assert [*map(data.fingerprint, in_memory)] == [*map(data.fingerprint, mapped)]


def test_a_second_array_in_a_file_is_not_left_out(tmp_path, monkeypatch):
    with open(tmp_path / "two.npy", "wb") as file:
        np.save(file, np.zeros((3, 2)))
        np.save(file, np.ones((3, 2)))
    monkeypatch.setattr("pyro_vae.data.numpy_files.IN_MEMORY", 0)
    for read in (MemoryMapped, load):
        with pytest.raises(ValueError, match="more data follow its array"):
            read(tmp_path / "two.npy")


def test_numbers_of_16_bits_without_a_type_of_numpys_have_a_fingerprint():
    halves = torch.arange(6).reshape(3, 2).bfloat16()
    assert data.digest_of(halves) == data.digest_of(halves.view(torch.int16)) != data.digest_of(halves + 1)


@pytest.mark.parametrize("shape", [(50, 3), (50, 2, 3), (50, 1), (1, 4), (2, 3, 1, 2)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_those_of_the_array_however_they_lie_in_the_file(tmp_path, shape, order, monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.random(shape)
    np.save(tmp_path / "x.npy", np.asarray(x, order=order))
    mapped = MemoryMapped(tmp_path / "x.npy", torch.from_numpy(generator.permutation(shape[0])))
    for page in (0, 16, 2**12):
        monkeypatch.setattr(data.rows, "PAGE", page)
        for size in (1, 7, 60):
            index = torch.from_numpy(generator.integers(0, shape[0], size))
            assert torch.equal(mapped[index], torch.from_numpy(x)[mapped.rows[index]])


@pytest.mark.parametrize(("order", "reads"), [("C", 1), ("F", 12)])
def test_rows_that_follow_one_another_are_read_at_once(tmp_path, order, reads, monkeypatch):
    np.save(tmp_path / "x.npy", np.asarray(np.zeros((5000, 3, 4)), order=order))
    read, sizes = data.rows._read_at, []

    def counted(file, start, size):
        sizes.append(size)
        return read(file, start, size)

    monkeypatch.setattr(data.rows, "_read_at", counted)
    assert MemoryMapped(tmp_path / "x.npy")[1000:2000].shape == (1000, 3, 4)
    assert sizes == [8 * 12 * 1000 // reads] * reads


def test_parts_of_data_in_8_bits_and_in_a_file_are_parts_of_their_rows(tmp_path):
    values = torch.arange(10, dtype=torch.uint8).reshape(5, 2)
    np.save(tmp_path / "x.npy", values.numpy())
    for x in (EightBit(values, 2.0), MemoryMapped(tmp_path / "x.npy", scale=2.0)):
        assert torch.equal(as_tensor(Subset(x, [3, 1, -1])), values[[3, 1, -1]] / 2)
        both = ConcatDataset([Subset(x, [3]), Subset(x, [0, 1])])
        assert torch.equal(as_tensor(both), values[[3, 0, 1]] / 2)
