"""What a reload can't change."""

from wsgimaster.config.options import OPTIONS, Option
from wsgimaster.settings import Settings


def fixed_changes(old: Settings, new: Settings) -> list[str]:
    """The options whose change only a restart brings about, each with both values: `processes: 4 -> 8`."""
    found: dict[str, str] = {}
    for option in OPTIONS:
        if option.field and not option.reloadable and option.field not in found:
            before, after = _value(old, option), _value(new, option)
            if before != after:
                found[option.field] = f"{option.names[0]}: {_text(before)} -> {_text(after)}"
    return list(found.values())


def _value(settings: Settings, option: Option) -> object:
    section, name = option.field.split(".")
    return getattr(getattr(settings, section), name)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(getattr(one, "name", one)) for one in value) or "none"
    return "none" if value is None else str(value)
