"""The center node (paper 3.2): clients join and leave.

node     the center node and what it keeps of its clients
flower   one round over a network, with Flower
"""

from .node import Approximation, CenterNode

__all__ = ["Approximation", "CenterNode"]
