"""The helper that looks for barriers finds them: a check that never fails would show nothing."""

import pytest

from tests.browser.conftest import assert_accessible

pytestmark = pytest.mark.browser


def test_assert_accessible_names_rule_and_element(page):
    page.set_content('<html lang="en"><title>A page</title><main><h1>A page</h1><input id="nameless"></main></html>')

    with pytest.raises(AssertionError, match="label at #nameless: "):
        assert_accessible(page)


def test_assert_accessible_lets_a_good_page_pass(page):
    page.set_content(
        '<html lang="en"><title>A page</title><main><h1>A page</h1><label>Name <input></label></main></html>'
    )

    assert_accessible(page)
