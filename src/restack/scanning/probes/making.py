"""From the name of a probe, as a command line has it, to the probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restack.errors import UsageError
from restack.runtime import context_length, sample_text
from restack.scanning.probe import Probe
from restack.scanning.probes.arithmetic import Arithmetic
from restack.scanning.probes.choice import Choice
from restack.scanning.probes.demo import Demo
from restack.scanning.probes.exact import Exact
from restack.scanning.probes.function import Function, load_function
from restack.scanning.probes.text import Text

KINDS = {  # what stands behind the colon of each
    "text": "text[:FILE]",
    "choice": "choice:FILE.jsonl",
    "exact": "exact:FILE.jsonl",
    "math": "math[:QUESTIONS]",
    "demo": "demo[:FAMILY,FAMILY...]",
    "task": "task:NAME",
    "function": "function:FILE.py:NAME",
}
MATH, DEMO = 256, 1200  # questions, if nothing else is said
MOST = 100_000  # questions that are made


@dataclass(frozen=True, slots=True)
class Making:
    """How probes are made, where their names do not say it.

    Attributes:
        questions: how many are made where a seeded generator makes them, and of a task at most.
        seed: of those generators.
        window: tokens of a text that are read at once.
        include_path: where more lm-evaluation-harness tasks are.
        few_shot: solved examples before each question of a task; None: as the task has it.
    """

    questions: int | None = None
    seed: int = 0
    window: int | None = None
    include_path: Path | None = None
    few_shot: int | None = None

    def __post_init__(self) -> None:
        if self.questions is not None and not 1 <= self.questions <= MOST:
            raise UsageError(f"{self.questions} questions cannot be made; write a number from 1 to {MOST}")


def check_probe(name: str) -> tuple[str, str]:
    """The kind of a probe and what stands behind the colon, by its name alone.

    Raises:
        UsageError: there is no such kind, or a part of the name is missing.
    """
    kind, _, argument = name.partition(":")
    if kind not in KINDS:
        raise UsageError(f"there is no probe {name!r}; write one of {', '.join(KINDS.values())}")
    if not argument and "[" not in KINDS[kind]:
        raise UsageError(f"the probe {kind} needs more; write {KINDS[kind]}")
    if kind == "math" and argument and not (argument.isascii() and argument.isdigit()):
        raise UsageError(f"{argument!r} is no number of questions; write math:240")
    if kind == "math" and argument and (len(argument) > len(str(MOST)) or not 1 <= int(argument) <= MOST):
        raise UsageError(f"{name:.40} asks for too many questions or none; write a number from 1 to {MOST}")
    return kind, argument


def make_probe(name: str, model: Any, tokenizer: Any, making: Making) -> Probe:
    """The probe of a name.

    Args:
        name: as `KINDS` has them.
        model: that will be asked, or its config.
        tokenizer: of the model.
        making: what the name does not say.

    Raises:
        UsageError: there is no such probe, or its file, task or function is not as it should be.
    """
    kind, argument = check_probe(name)
    context = context_length(getattr(model, "config", model))
    match kind:
        case "text":
            text = _text(Path(argument).expanduser()) if argument else sample_text()
            try:
                return Text(name, tokenizer, text, window=making.window, context=context)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
        case "choice":
            return Choice(name, tokenizer, Path(argument).expanduser(), context=context)
        case "exact":
            return Exact(name, tokenizer, Path(argument).expanduser(), context=context)
        case "math":
            return Arithmetic(name, tokenizer, int(argument or making.questions or MATH), making.seed)
        case "demo":
            families = [family for family in argument.split(",") if family]
            return Demo(name, tokenizer, families, making.questions or DEMO, making.seed)
        case "task":
            from restack.scanning.probes.task import task_probe  # lm-evaluation-harness, an extra

            probe = task_probe(
                argument,
                tokenizer,
                include_path=making.include_path,
                limit=making.questions,
                num_fewshot=making.few_shot,
                context=context,
            )
            probe.name = name
            return probe
    return Function(name, tokenizer, load_function(argument))


def make_probes(names: Sequence[str], model: Any, tokenizer: Any, making: Making) -> list[Probe]:
    """The probes of some names."""
    return [make_probe(name, model, tokenizer, making) for name in names]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; name a text file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it") from None
