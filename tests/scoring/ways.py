"""The four ways by which `ChatSpans` finds spans, one at a time."""

from unittest.mock import patch

from rsr_trl.scoring.chat_spans import ChatSpans
from rsr_trl.scoring.derived_spans import DerivedSpans


def own_texts(chat: ChatSpans, messages: list[dict], first: int = 0, **kwargs) -> list[str]:
    text, spans = chat(messages, kwargs, first)
    assert text == chat.render(messages, kwargs)
    return [text[start:end] for start, end in spans]


def without_markers(chat: ChatSpans) -> ChatSpans:
    """Makes the spans come from variants of the conversation."""
    chat._marked = None
    return chat


class _BlockByBlock(ChatSpans):
    def __call__(self, *args):
        with patch.object(DerivedSpans, "_between_anchors", return_value=None):
            return super().__call__(*args)


class _TurnByTurn(_BlockByBlock):
    def __call__(self, *args):
        with patch.object(DerivedSpans, "_block_by_block", return_value=[]):
            return super().__call__(*args)


def block_by_block(chat: ChatSpans) -> ChatSpans:
    """Makes the spans come from small conversations, a turn each, or from variants where that isn't possible."""
    chat.__class__ = _BlockByBlock
    return without_markers(chat)


def turn_by_turn(chat: ChatSpans) -> ChatSpans:
    """Makes the spans come from variants of the conversation, turn by turn."""
    chat.__class__ = _TurnByTurn
    return without_markers(chat)


WAYS = {
    "markers": lambda chat: chat,
    "anchors": without_markers,
    "blocks": block_by_block,
    "turns": turn_by_turn,
}
