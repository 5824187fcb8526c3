"""A config class whose computed settings can be frozen, and whose saving refused: what no file can say."""

from functools import cache
from typing import Any

from restack.errors import ViewError

FROZEN = "_restack_frozen"  # in the instance: {name: value} of the settings that no longer follow the rule
UNSAVED = "_restack_unsaved"  # in the instance: why a model loaded by this config would not be this one


class _Freezing:
    """Mixed into a config class: what an instance has frozen comes before what the class computes."""

    def __getattribute__(self, key: str) -> Any:
        look_up = super().__getattribute__
        frozen = look_up("__dict__").get(FROZEN)
        if frozen:
            key = look_up("attribute_map").get(key, key)
            if key in frozen:
                return frozen[key]
        return look_up(key)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the original class; the class made here has no name that pickle could find."""
        return _new, (type(self).__mro__[2],), vars(self)

    def to_dict(self) -> dict[str, Any]:
        """As the config would say it by itself."""
        said: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        said.pop(FROZEN, None)
        said.pop(UNSAVED, None)
        return said

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused while something is frozen: a saved config would be read back by the rule."""
        if frozen := vars(self).get(FROZEN):
            raise ViewError(
                f"a {type(self).__name__} computes {', '.join(frozen)} by a rule that this order of layers "
                "does not follow, so no saved config can say it; save the base and the plan instead"
            )
        if reason := vars(self).get(UNSAVED):
            raise ViewError(f"{reason}; save the base and the plan instead")
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


@cache
def freezing(config_class: type) -> type:
    """The subclass of a config class that can freeze; the class itself if it can already."""
    if issubclass(config_class, _Freezing):
        return config_class
    names = {name: getattr(config_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(config_class.__name__, (_Freezing, config_class), names)


def _new(config_class: type) -> Any:
    return object.__new__(freezing(config_class))
