from .shapes import CLASSES, SEMANTIC_CLASSES, make_shapes

__all__ = ['CLASSES', 'SEMANTIC_CLASSES', 'make_shapes']
