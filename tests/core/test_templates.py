import base64
import hashlib

import jinja2
import pytest

from cifarnet.core.templates import read_template


@pytest.fixture
def template(tmp_path):
    """`template(text)` -> the template with this text, beside a file `part.j2`."""
    (tmp_path / "part.j2").write_text("<b>")
    path = tmp_path / "page.j2"

    def read(text: str, **options) -> jinja2.Template:
        path.write_text(text)
        return read_template(path, **options)

    return read


def test_values_are_text_unless_escaping_is_off(template):
    text = "{% include 'part.j2' %}{{ name | twice }}"
    twice = {"twice": lambda value: 2 * value}
    assert template(text, **twice).render(name="<") == "<b>&lt;&lt;"
    assert template(text, escape=False, **twice).render(name="<") == "<b><<"


def test_a_name_without_a_value_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="name"):
        template("{{ name }}").render()


def test_the_filter_sha256_is_that_of_a_content_security_policy(template):
    expected = base64.b64encode(hashlib.sha256(b"alert()").digest()).decode()
    assert template("{{ 'alert()' | sha256 }}").render() == expected
