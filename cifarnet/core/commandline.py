"""The old place of these names; goes when nothing imports it."""

from cifarnet.core.arguments import *  # noqa: F403
from cifarnet.core.command import *  # noqa: F403
from cifarnet.core.errors import *  # noqa: F403
from cifarnet.core.packages import *  # noqa: F403
