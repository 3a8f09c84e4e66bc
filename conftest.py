"""Two tiers of tests: ``pytest`` takes a few cases of each check and module, ``pytest --everything`` takes all."""

from collections import defaultdict

import pytest

FEW = 2  # cases of one test and one module in the quick tier


def pytest_addoption(parser):
    parser.addoption("--everything", action="store_true", help="run the slow tests, and every case of each test")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about five seconds; runs with --everything alone")


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    """Leave out slow tests and most cases of each test, unless ``--everything`` or a test's own name asks for them."""
    if config.getoption("--everything") or any("::" in argument for argument in config.args):
        return
    cases = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0], modules_of(item)].append(item)
    quick = {id(item) for of_one in cases.values() for item in of_one[:: -(-len(of_one) // FEW)]}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in quick])
    items[:] = [item for item in items if id(item) in quick]


def modules_of(item):
    """Return the modules of the package that a test's parameters come from: a part's, an objective's, a class's."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    classes = (getattr(value, "family", value if isinstance(value, type) else type(value)) for value in values)
    return tuple(sorted({cls.__module__ for cls in classes if cls.__module__.startswith("pyro_vae")}))
