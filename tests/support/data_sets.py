"""Data sets as users write them: of items that have places, and of items in their own order."""

from torch.utils.data import Dataset, IterableDataset


class Indexed:
    """A data set that has only a length and an index, and no base class."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Items(Indexed, Dataset):
    """A data set that has only a length and an index."""


class Stream(IterableDataset):
    """A data set that can only be iterated over."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)
