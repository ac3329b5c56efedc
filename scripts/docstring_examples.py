"""An extension of griffe, which reads docstrings for the pages: a section `Example:` is code, as `Examples:` is."""

from __future__ import annotations

import re
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]  (of the extra `docs`)


class Example(griffe.Extension):
    """Rename the section, which griffe knows in the plural alone."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of each module, class, function and attribute before it is read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
