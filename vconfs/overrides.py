"""`override`, which typing has since Python 3.12.

It marks a method whose contract is in the base class. Such a method has a docstring only if it
adds something to that contract.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["override"]

if sys.version_info >= (3, 12):
    from typing import override
elif TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):
        """Return the method as it is."""
        return method
