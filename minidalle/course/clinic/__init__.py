"""The clinic of notebook 14: patients, the instruments that examine them, and what to say of a diagnosis."""

from minidalle.course.clinic.diagnosis import (
    CASES,
    chart,
    diagnose,
    examine,
    healthy_ranges,
    is_right,
    mark,
    patient,
    report,
)
from minidalle.course.clinic.instruments import examples, measure
from minidalle.course.clinic.mistakes import MISTAKES, SmallWorld
from minidalle.course.clinic.patients import Patient, load

__all__ = [
    "CASES",
    "MISTAKES",
    "Patient",
    "SmallWorld",
    "chart",
    "diagnose",
    "examine",
    "examples",
    "healthy_ranges",
    "is_right",
    "load",
    "mark",
    "measure",
    "patient",
    "report",
]
