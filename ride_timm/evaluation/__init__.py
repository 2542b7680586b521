"""Measuring a network: one pass over the images yields everything."""

from .one_pass import Answers as Answers
from .one_pass import Measured as Measured
from .one_pass import measure as measure
from .one_pass import measure_split as measure_split
from .scores import Scores as Scores
from .scores import evaluate as evaluate
from .thresholds import ThresholdChoice as ThresholdChoice
from .thresholds import choose_threshold as choose_threshold

__all__ = [
    'Answers',
    'Measured',
    'Scores',
    'ThresholdChoice',
    'choose_threshold',
    'evaluate',
    'measure',
    'measure_split',
]
