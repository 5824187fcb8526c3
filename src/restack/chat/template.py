"""A conversation as the model's chat template writes it."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from restack.chat.messages import Message
from restack.errors import UsageError

# For models without a chat template of their own: a plain transcript that ends where the next speaker begins.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}:"
    "{{ '' if message['content'].startswith(' ') else ' ' }}{{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# What begins the other speaker's turn, there.
PLAIN_STOPS = {"assistant": ("\n\nUser:", "\nUser:"), "user": ("\n\nAssistant:", "\nAssistant:")}
MARK = "\ue000"  # of no language: stands for what is going to be said


class ChatTemplate:
    """The chat template of a tokenizer, or the plain one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def stops(self, role: str) -> tuple[str, ...]:
        """The strings that end what this role says, where no token of the model does."""
        return () if self.tokenizer.chat_template else PLAIN_STOPS[role]

    def opened(self, messages: Sequence[Message], role: str = "assistant", begun: str = "") -> str:
        """The conversation up to where this role goes on speaking, having begun with some words.

        What is begun is written after the template's own opening of a message, since many templates trim what
        is said (Llama 3's) or cut it (those that hide thoughts).

        Raises:
            UsageError: the template refuses the conversation.
        """
        history = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._opened(history, role, begun)
        except (
            TemplateError,
            TypeError,
            ValueError,
            IndexError,
        ) as error:  # what templates and transformers raise
            raise _refused(error, messages, begun) from error
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the conversation is not UTF-8: it has half a surrogate pair in it; take it out")
        return text

    def _opened(self, history: list[dict[str, str]], role: str, begun: str) -> str:
        if role != "assistant":
            marked = self._written([*history, {"role": role, "content": MARK}])
            if MARK not in marked:
                raise ValueError(f"it leaves out what the {role} says")
            opened = marked.rpartition(MARK)[0]
            # As the plain template opens an answer: the blank is the model's, or part of what is begun.
            return (opened if self.tokenizer.chat_template or begun else opened.rstrip(" ")) + begun
        opened = self._written(history, add_generation_prompt=True)
        if not begun or (self.tokenizer.chat_template and opened != self._written(history)):
            return opened + begun
        # Such a template opens an answer only when there is one, and nobody else knows with which words.
        text = self._written([*history, {"role": role, "content": begun}], continue_final_message=True)
        if text.endswith(begun):
            return text
        return text.removesuffix(begun.strip()) + begun

    def _written(self, history: list[dict[str, str]], **options: Any) -> str:
        template = None if self.tokenizer.chat_template else PLAIN_TEMPLATE
        return str(
            self.tokenizer.apply_chat_template(history, chat_template=template, tokenize=False, **options)
        )


def _refused(error: Exception, messages: Sequence[Message], begun: str) -> UsageError:
    """Which of the things that not every template takes there are, and what the template said."""
    has_system = any(message.role == "system" for message in messages)
    given = {"a system prompt": has_system, "this prefix": begun}
    remedies = {"leave out --system": has_system, "change --ai-prefix": begun}
    what = " or ".join(name for name, value in given.items() if value) or "this conversation"
    remedy = " or ".join(name for name, value in remedies.items() if value) or "take another model"
    reason = " ".join(str(error).split())
    return UsageError(f"the model's chat template refuses {what}: {reason:.200}; {remedy}")
