from collections.abc import Iterator

import pytest

from tests.installation import Installation, running


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A running installation without the demonstration, shared by the session's tests; leave it running."""
    with running(tmp_path_factory.mktemp("installation")) as started:
        yield started
