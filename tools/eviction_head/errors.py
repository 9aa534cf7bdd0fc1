"""The error that is told in one line."""


class ToolError(Exception):
    """Something the user can be told in one line."""
