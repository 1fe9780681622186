"""What a reload, or an upgrade, can't change while the server runs."""

from wsgimaster.config.options import OPTIONS, Kind, Option, Takes
from wsgimaster.settings import Address, Family, Settings

Values = dict[str, tuple[str, str]]  # by field: the option's usual name, and its value as text


def values(settings: Settings, takes: Takes) -> Values:
    """Of the options whose change takes that."""
    found: Values = {}
    for option in OPTIONS:
        if option.field and option.takes is takes:  # several options may set it
            found.setdefault(option.field, (option.names[0], _shown(option, settings)))
    return found


def changes(old: Values, new: Values) -> list[str]:
    """Those that differ, each with both values: `threads: 4 -> 8`. Two versions may not know the same fields."""
    both = [(old[field], new[field]) for field in old if field in new]
    return [f"{name}: {before} -> {after}" for (name, before), (_, after) in both if before != after]


def beyond_a_reload(old: Settings, new: Settings) -> list[str]:
    """The changes that a reload can't make, each with what can."""
    return [
        f"{change}: a reload can't change that, {takes} does"
        for takes in (Takes.UPGRADE, Takes.OTHER_WORKERS, Takes.RESTART)
        for change in changes(values(old, takes), values(new, takes))
    ]


def _shown(option: Option, settings: Settings) -> str:
    section, name = option.field.split(".")
    value = getattr(getattr(settings, section), name)
    octal = option.kind in (Kind.OCTAL, Kind.MODE) and isinstance(value, int)
    return f"{value:03o}" if octal else _text(value)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value)) or "unset"
    if isinstance(value, Address):
        kind = f" ({value.family})" if value.family is Family.ABSTRACT else ""
        files = "" if value.tls is None else f" ({', '.join(str(one) for _, one in value.tls)})"
        return f"{value.scheme}://{value.name}{kind}{files}"
    return "unset" if value is None else str(value)
