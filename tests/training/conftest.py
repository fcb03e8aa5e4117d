import pytest

# Lightning 2.6 speaking to a newer torch, and its advice about worker processes and logging
EXPECTED = (
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*is smaller than the logging interval:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "training" in item.path.parts:
            for warning in EXPECTED:
                item.add_marker(pytest.mark.filterwarnings(warning))
