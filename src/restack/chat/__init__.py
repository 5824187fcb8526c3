"""Conversations with a model or a view of one."""

from restack.chat.conversation import Conversation

__all__ = ["Conversation"]
