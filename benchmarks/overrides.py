"""Changes of a config as text."""

import json


def apply(config, overrides: list[str]) -> None:
    """Sets `section.field=value`, the value in JSON or as bare text."""
    for override in overrides:
        path, text = override.split("=", 1)
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config.update_from_flattened_dict({path: tuple(value) if isinstance(value, list) else value})
