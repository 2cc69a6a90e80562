"""Embedded pictures, each with one question about it."""

from __future__ import annotations

from pruneopt.demo.assets import Question, load_questions
from pruneopt.errors import InputError


def first_questions(pictures: int) -> list[Question]:
    """The first question about each of that many pictures. Raises InputError for more than there are."""
    seen: dict[object, Question] = {}
    for question in load_questions():
        seen.setdefault(question.image, question)
    if pictures > len(seen):
        raise InputError(f"asked for {pictures} pictures; {len(seen)} are embedded")
    return list(seen.values())[:pictures]
