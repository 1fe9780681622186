"""What a reload can't change."""

from wsgimaster.config.options import OPTIONS, Option
from wsgimaster.settings import Settings


def fixed_values(settings: Settings) -> dict[str, str]:
    """The options whose change only a restart brings about, each by its usual name, with its value as text."""
    found: dict[str, tuple[str, str]] = {}  # by field: several options may set it
    for option in OPTIONS:
        if option.field and not option.reloadable:
            found.setdefault(option.field, (option.names[0], _text(_value(settings, option))))
    return dict(found.values())


def fixed_changes(old: Settings, new: Settings) -> list[str]:
    """Those that differ, each with both values: `processes: 4 -> 8`."""
    return changes(fixed_values(old), fixed_values(new))


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Of options that both know; two versions may not know the same."""
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]]


def _value(settings: Settings, option: Option) -> object:
    section, name = option.field.split(".")
    return getattr(getattr(settings, section), name)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(getattr(one, "name", one)) for one in value) or "none"
    return "none" if value is None else str(value)
