"""What a request may say, as OpenAI's API has it; what is not known here is refused by its name."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_STOPS = 16
LONGEST_STOP = 256  # characters
MOST_CHOICES = 16
Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Said(BaseModel):
    """Part of a request. A field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        return {k: v for k, v in said.items() if v is not None} if isinstance(said, dict) else said


class TextPart(_Said):
    """A part of a message; of other types than text none is read."""

    type: Literal["text"]
    text: str


class Message(_Said):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""

    @field_validator("content", mode="before")
    @classmethod
    def _of_text(cls, content: Any) -> Any:
        parts = content if isinstance(content, list) else []
        kinds = [part.get("type") for part in parts if isinstance(part, dict)]
        other = next((kind for kind in kinds if kind != "text"), None)
        if other is not None:
            raise ValueError(f"parts of type {other!r:.40} are not supported; send text")
        return content

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Said):
    """What a stream also tells."""

    include_usage: bool = False


class _Asked(_Said):
    """What both kinds of requests may say.

    Attributes:
        top_k, ignore_eos: as vLLM has them, beside OpenAI's own.
        user: is nothing to the answer.
    """

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] = ()  # type: ignore[assignment]
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False
    user: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _of_tokens(cls, bias: dict[str, float]) -> dict[str, float]:
        wrong = next((token for token in bias if not re.fullmatch("0|[1-9][0-9]{0,8}", token)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r:.40} is no token id; write its number, as a string")
        return bias

    @field_validator("stop")
    @classmethod
    def _of_some_length(cls, stop: Any) -> Any:
        strings = [stop] if isinstance(stop, str) else stop
        if "" in strings:
            raise ValueError("an empty stop string would end every answer at once; leave it out")
        longest = max(map(len, strings), default=0)
        if longest > LONGEST_STOP:
            raise ValueError(f"a stop string has {longest} characters; write {LONGEST_STOP} at most")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Asked):
    """The body of a request for /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """How many tokens the answer may have; None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many log probabilities are asked for beside that of each token; None: not even that."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Asked):
    """The body of a request for /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @field_validator("echo")
    @classmethod
    def _not_asked_for(cls, echo: bool) -> bool:
        if echo:
            raise ValueError("it is not supported; leave it out")
        return echo

    @property
    def limit(self) -> int | None:
        """How many tokens the answer may have; None for 16, as OpenAI has it, or what there is room for."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many log probabilities are asked for beside that of each token; None: not even that."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str) or all(isinstance(each, int) for each in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
