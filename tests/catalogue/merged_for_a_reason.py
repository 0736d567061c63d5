"""The operations that get the merged weight although they are linear in it, and why."""

REASONS: dict[str, str] = {}
