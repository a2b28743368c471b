"""Write `deploy/soma.toml`: every setting with its default and unit. `python -m deploy.settings`."""

import json
from pathlib import Path

from soma_agents.settings import Section, Settings

TARGET = Path(__file__).with_name("soma.toml")


def _literal(value: object) -> str:
    return json.dumps(value)


def render() -> str:
    """The file's text, from the settings themselves."""
    lines = [
        "# Every setting of SOMA with its default. Copy what you change to $SOMA_HOME/soma.toml.",
        "# The environment overrides it: SOMA_SERVER__PORT=8000. `soma --home DIR` names the data directory.",
    ]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            continue
        lines += ["", f"# {section.__doc__}", f"[{name}]"]
        for key, setting in section.model_fields.items():
            value = _literal(setting.default)
            lines.append(f"{key} = {value}  # {setting.description}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
