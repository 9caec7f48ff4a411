"""Page of the Space that this folder can be pushed to."""

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load("rsr_correlation.py"))
