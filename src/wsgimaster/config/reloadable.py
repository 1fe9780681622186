"""What a reload, or an upgrade, can't change while the server runs."""

from wsgimaster.config.options import OPTIONS, Option, Takes
from wsgimaster.settings import Settings

Values = dict[str, str]  # options by their usual names, with their values as text


def values(settings: Settings, takes: Takes) -> Values:
    """Of the options whose change takes that."""
    found: dict[str, tuple[str, str]] = {}  # by field: several options may set it
    for option in OPTIONS:
        if option.field and option.takes is takes:
            found.setdefault(option.field, (option.names[0], _text(_value(settings, option))))
    return dict(found.values())


def changes(old: Values, new: Values) -> list[str]:
    """Those that differ, each with both values: `threads: 4 -> 8`. Two versions may not know the same options."""
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]]


def beyond_a_reload(old: Settings, new: Settings) -> list[str]:
    """The changes that a reload can't make, each with what can."""
    return [
        f"{change}: a reload can't change that, {takes} does"
        for takes in (Takes.UPGRADE, Takes.OTHER_WORKERS, Takes.RESTART)
        for change in changes(values(old, takes), values(new, takes))
    ]


def _value(settings: Settings, option: Option) -> object:
    section, name = option.field.split(".")
    return getattr(getattr(settings, section), name)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(getattr(one, "name", one)) for one in value) or "none"
    return "none" if value is None else str(value)
