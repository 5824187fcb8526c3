"""A conversation: messages, and a model that answers the last one."""

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from restack.errors import UsageError
from restack.runtime import Sampling, generate

Message = dict[str, str]

# For models without a chat template of their own: a plain transcript that ends where the next speaker begins.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}:"
    "{{ '' if message['content'].startswith(' ') else ' ' }}{{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\n\nUser:", "\nUser:")


class Conversation:
    """Messages in transformers' form, and the model that answers them.

    Attributes:
        model: answers; it may be changed for another view at any time, and the conversation goes on.
        tokenizer: of the model, with its chat template; `PLAIN_TEMPLATE` if it has none.
        messages: all that was said, the system prompt first.
        ai_prefix: every answer begins with these words (DeepSeek's prefix completion, chatllm.cpp's
            `--ai_prefix`); they become part of the answer in `messages`.
        sampling: how tokens are chosen.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        ai_prefix: str = "",
        sampling: Sampling | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.ai_prefix = ai_prefix
        self.sampling = sampling or Sampling()
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str, on_text: Callable[[str], None] = lambda text: None) -> str:
        """The answer to a user's message; pieces go to `on_text` as they are written, the prefix first.

        An answer that is interrupted (KeyboardInterrupt) stays in the conversation as far as it came; if the
        model had not said anything yet, the conversation is as before.

        Raises:
            UsageError: the message is empty, the context is full, or the model's chat template refuses the
                conversation, which is then as before.
        """
        if not text.strip():
            raise UsageError("the message is empty; write something to answer")
        said: list[str] = []

        def hear(piece: str) -> None:
            said.append(piece)
            on_text(piece)

        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            tokens = self._prompt()
            if self.ai_prefix:
                hear(self.ai_prefix)
            stop = () if self.tokenizer.chat_template else PLAIN_STOPS
            generate(self.model, self.tokenizer, tokens, self.sampling, hear, stop=stop)
        except KeyboardInterrupt:
            if "".join(said) in ("", self.ai_prefix):
                self.messages = before
            else:
                self._answered(said)
            raise
        except BaseException:
            self.messages = before
            raise
        return self._answered(said)

    def _answered(self, said: list[str]) -> str:
        answer = "".join(said)
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _prompt(self) -> Any:
        messages = list(self.messages)
        if self.ai_prefix:
            messages.append({"role": "assistant", "content": self.ai_prefix})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=None if self.tokenizer.chat_template else PLAIN_TEMPLATE,
                add_generation_prompt=not self.ai_prefix,
                continue_final_message=bool(self.ai_prefix),
                return_tensors="pt",
                return_dict=True,
            )["input_ids"].to(self.model.device)
        except (TemplateError, TypeError, ValueError) as error:  # what templates and transformers raise
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> UsageError:
        """Which of the things that not every template takes there are, and what the template said."""
        given = {"a system prompt": self.system, "this prefix": self.ai_prefix}
        remedies = {"leave out --system": self.system, "change --ai-prefix": self.ai_prefix}
        what = " or ".join(name for name, value in given.items() if value) or "this conversation"
        remedy = " or ".join(name for name, value in remedies.items() if value) or "take another model"
        reason = " ".join(str(error).split())
        return UsageError(f"the model's chat template refuses {what}: {reason:.200}; {remedy}")
