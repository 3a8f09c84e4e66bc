"""Two tiers of tests: ``pytest`` takes one case of each check and module, ``pytest --everything`` takes all.

``pytest --rest`` takes what ``pytest`` leaves out: both together take all, each case once.
"""

import pytest


def pytest_addoption(parser):
    parser.addoption("--everything", action="store_true", help="run the slow tests, and every case of each test")
    parser.addoption("--rest", action="store_true", help="run what --everything adds alone")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about five seconds; runs with --everything alone")
    config.addinivalue_line("markers", "pictures: looks at the pictures of a run, which are blank in other tests")


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    """Leave out slow tests and most cases of each test, unless ``--everything`` or a test's own name asks for them."""
    if config.getoption("--everything") or any("::" in argument for argument in config.args):
        return
    quick: dict[tuple[str, tuple[str, ...]], pytest.Item] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            quick.setdefault((item.nodeid.partition("[")[0], modules_of(item)), item)
    ids, rest = set(map(id, quick.values())), config.getoption("--rest")
    config.hook.pytest_deselected(items=[item for item in items if (id(item) in ids) == rest])
    items[:] = [item for item in items if (id(item) in ids) != rest]


def modules_of(item):
    """Return the modules of the package that a test's parameters come from: a part's, an objective's, a class's."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    classes = (getattr(value, "family", value if isinstance(value, type) else type(value)) for value in values)
    return tuple(sorted({cls.__module__ for cls in classes if cls.__module__.startswith("pyro_vae")}))
