"""Numbers that a class gets of its own, so that the answers of the public course are not those of the class."""

from minidalle.course.classroom.lesson import Lesson


def drawn(lesson: Lesson, seed: int | None) -> Lesson:
    """Give a lesson with the numbers that a seed draws; None: the course's own."""
    return lesson
