"""The attentions and rotary embeddings that a config can name, and those that a user adds."""

from collections import UserDict
from typing import Any

from restack.errors import ModelError
from restack.plans.pointing import shown


class Registry(UserDict[str, Any]):
    """Classes by name; the case of a name does not matter."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ModelError(f"{shown(name)} is no name for {self.what}; write a word")
        if not isinstance(value, type):
            raise ModelError(
                f"{shown(value)} is no class; register the class of {self.what}, not an instance"
            )
        super().__setitem__(name.lower(), value)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower())

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def require(self, name: Any) -> Any:
        """The class of this name.

        Raises:
            ModelError: there is none; it lists those that there are.
        """
        if name not in self:
            raise ModelError(f"{shown(name)} is no {self.what}; the names are {', '.join(sorted(self))}")
        return self[name]


ATTENTIONS = Registry("attention")
ROTARIES = Registry("rotary embedding")


def register_attention(name: str, attention: type) -> None:
    """Let configs name an attention of your own: `RestackLlamaConfig(attention=name)`.

    Args:
        name: in any case; one that is taken is given to the new class.
        attention: a module class that is made and called as `LlamaAttention` is, most easily a subclass.

    Raises:
        ModelError: it is no class, or the name no word.
    """
    ATTENTIONS[name] = attention


def register_rotary(name: str, rotary: type) -> None:
    """Let configs name a rotary embedding of your own: `rope_parameters={"rope_type": name}`.

    Args:
        name: in any case; one that is taken is given to the new class.
        rotary: a module class made with the config whose `forward(x, position_ids)` gives the cosines and
            sines, each (B, T, hs), most easily a subclass of `RotaryEmbedding`.

    Raises:
        ModelError: it is no class, or the name no word.
    """
    ROTARIES[name] = rotary
