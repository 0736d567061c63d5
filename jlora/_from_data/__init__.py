"""Starts that read a few batches: what the weights get, or where they would go.

Both find the strongest directions of a matrix of a weight's size by subspace iteration, and never
form it: a product of it with a few directions is the gradient of something small.
"""

from jlora._from_data._eva import eva as eva
from jlora._from_data._lora_ga import lora_ga as lora_ga
