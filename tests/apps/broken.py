"""A module whose import fails."""

raise RuntimeError("this module can't be imported")
