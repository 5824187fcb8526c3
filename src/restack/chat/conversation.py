"""A conversation: messages, and a model that answers the last one."""

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from restack.errors import UsageError
from restack.runtime import Sampling, check_room, generate, generate_all

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

        The first piece, the prefix or "" without one, comes as soon as the model begins to read.

        An answer that is interrupted (KeyboardInterrupt) stays in the conversation as far as it came; if the
        model had not said anything yet, the conversation is as before.

        Raises:
            UsageError: the message is empty, the context is full (`ContextFull`), or the model's chat
                template refuses the conversation, which is then as before.
        """
        _refuse_empty(text)
        said: list[str] = []

        def hear(piece: str) -> None:
            said.append(piece)
            on_text(piece)

        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            tokens = self._prompt()
            check_room(self.model, tokens)  # before anything is heard of an answer
            hear(self.ai_prefix)
            generate(self.model, self.tokenizer, tokens, self.sampling, hear, stop=self._stops)
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

    def ask_all(self, texts: Sequence[str]) -> list[str]:
        """The answers to several messages, each as if it alone came next; the conversation stays as it is.

        They are generated as one batch: `runtime.generate_all`.

        Raises:
            UsageError: as `ask` does.
        """
        before, prompts = self.messages, []
        for text in texts:
            _refuse_empty(text)
            try:
                self.messages = [*before, {"role": "user", "content": text}]
                prompts.append(self._prompt())
            finally:
                self.messages = before
        answers = generate_all(self.model, self.tokenizer, prompts, self.sampling, stop=self._stops)
        return [self.ai_prefix + answer for answer in answers]

    @property
    def _stops(self) -> tuple[str, ...]:
        return () if self.tokenizer.chat_template else PLAIN_STOPS

    def _answered(self, said: list[str]) -> str:
        answer = "".join(said)
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _prompt(self) -> Any:
        """The conversation so far and the beginning of the answer, as tokens of shape (1, tokens)."""
        try:
            text = self._begun()
        except (TemplateError, TypeError, ValueError) as error:  # what templates and transformers raise
            raise self._refused(error) from error
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the conversation is not UTF-8: it has half a surrogate pair in it; take it out")
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(
            self.model.device
        )

    def _begun(self) -> str:
        """The conversation as the template writes it, up to where the model goes on.

        The prefix is written after the template's own opening of an answer, since many templates trim what
        is said (Llama 3's) or cut it (those that hide thoughts).
        """
        opened = self._written(self.messages, add_generation_prompt=True)
        if not self.ai_prefix:
            return opened
        if self.tokenizer.chat_template and opened != self._written(self.messages):
            return opened + self.ai_prefix
        # Such a template opens an answer only when there is one, and nobody else knows with which words.
        answer = {"role": "assistant", "content": self.ai_prefix}
        begun = self._written([*self.messages, answer], continue_final_message=True)
        if begun.endswith(self.ai_prefix):
            return begun
        return begun.removesuffix(self.ai_prefix.strip()) + self.ai_prefix

    def _written(self, messages: list[Message], **options: Any) -> str:
        template = None if self.tokenizer.chat_template else PLAIN_TEMPLATE
        return str(
            self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        )

    def _refused(self, error: Exception) -> UsageError:
        """Which of the things that not every template takes there are, and what the template said."""
        given = {"a system prompt": self.system, "this prefix": self.ai_prefix}
        remedies = {"leave out --system": self.system, "change --ai-prefix": self.ai_prefix}
        what = " or ".join(name for name, value in given.items() if value) or "this conversation"
        remedy = " or ".join(name for name, value in remedies.items() if value) or "take another model"
        reason = " ".join(str(error).split())
        return UsageError(f"the model's chat template refuses {what}: {reason:.200}; {remedy}")


def _refuse_empty(text: str) -> None:
    if not text.strip():
        raise UsageError("the message is empty; write something to answer")
