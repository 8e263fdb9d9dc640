"""How much work something is, told by a count: a clock tells how busy the machine is."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def num_calls(function: Callable[[], Any]) -> int:
    """How many functions are called in it, built-in ones too."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count
