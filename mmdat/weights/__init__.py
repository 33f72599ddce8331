"""Pretrained weights by name: which there are, and how their files come to this machine."""

from .fetch import fetch
from .table import SCHEME, Weights, find_weights, list_weights

__all__ = ['SCHEME', 'Weights', 'fetch', 'find_weights', 'list_weights']
