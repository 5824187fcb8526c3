"""Programs of several agents: two that talk, a router with its experts, a thinker with one who sums up."""

from restack.chat.programs.agent import Agent
from restack.chat.programs.audience import Audience, Line, Listeners, Silent
from restack.chat.programs.dialogue import Duet, duet
from restack.chat.programs.repetition import Repeat, RepetitionDetector
from restack.chat.programs.routing import Cobblers, cobblers
from restack.chat.programs.stage import Part, Stage
from restack.chat.programs.terminal import Terminal
from restack.chat.programs.thinking import Prompts, Thinking, think
from restack.chat.programs.transcript import Transcript, check_transcript

__all__ = [
    "Agent",
    "Audience",
    "Cobblers",
    "Duet",
    "Line",
    "Listeners",
    "Part",
    "Prompts",
    "Repeat",
    "RepetitionDetector",
    "Silent",
    "Stage",
    "Terminal",
    "Thinking",
    "Transcript",
    "check_transcript",
    "cobblers",
    "duet",
    "think",
]
