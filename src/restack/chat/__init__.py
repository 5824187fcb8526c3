"""Conversations with a model or a view of one."""

from restack.chat.conversation import Conversation
from restack.chat.messages import Message, Piece
from restack.chat.session import load_session, save_session
from restack.chat.template import PLAIN_TEMPLATE
from restack.chat.thoughts import Tags
from restack.chat.window import OVERFLOWS

__all__ = [
    "OVERFLOWS",
    "PLAIN_TEMPLATE",
    "Conversation",
    "Message",
    "Piece",
    "Tags",
    "load_session",
    "save_session",
]
