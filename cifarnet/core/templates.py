"""Pages and cards from Jinja templates: one set-up for all of them."""

import base64
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jinja2


@functools.cache  # to compile the page of a report takes a third of a second
def read_template(
    path: Path, *, escape: bool = True, **filters: Callable[..., str]
) -> jinja2.Template:
    """The template in the file `path`.

    It may include files of its folder, and of others in the package, as `folder/name`. A name that
    is not given is an error. `escape`: values become plain text in HTML. Its filters are `filters`,
    and `sha256`: the name of an inline script or style in a content security policy.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, path.parents[1]]),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"sha256": _sha256} | filters
    return environment.get_template(path.name)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
